"""Interpolate learned positions to another image size."""

import numpy as np


def resize_positions(positions: np.ndarray, tokens: int) -> np.ndarray:
    """Resize position embeddings `[1, 1 + n * n, D]` to `[1, tokens, D]`. The class token is first and unchanged.

    Bicubic on the square grid of patches, as in torch's `interpolate(mode="bicubic", align_corners=False)`, which
    EVA-CLIP uses for other image sizes.
    """
    dim = positions.shape[-1]
    old, new = _side(positions.shape[1]), _side(tokens)
    grid = positions[0, 1:].astype(np.float64).reshape(old, old, dim)
    weights = _bicubic_weights(old, new)
    resized = np.einsum("ai,bj,ijd->abd", weights, weights, grid).reshape(1, new * new, dim)
    return np.concatenate([positions[:, :1], resized.astype(positions.dtype)], axis=1)


def _side(tokens: int) -> int:
    side = round((tokens - 1) ** 0.5)
    assert side * side + 1 == tokens, tokens
    return side


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """Return `[new, old]`: cubic convolution (Keys 1981) with a = -0.75 over pixel centers, edges repeated."""
    a = -0.75
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centers).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centers - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weight = np.where(distance <= 1, near, far)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return weights
