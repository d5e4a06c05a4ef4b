"""Learned positions of one image size, interpolated to another."""

import numpy as np


def resize_positions(positions: np.ndarray, tokens: int) -> np.ndarray:
    """Position embeddings `[1, 1 + n * n, D]` as `[1, tokens, D]`, the class token's first and unchanged.

    Bicubic on the square grid of patches, as torch's `interpolate(mode="bicubic", align_corners=False)` does it, which
    EVA-CLIP uses when it meets another image size.
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
    """`[new, old]`: cubic convolution (Keys 1981) with a = -0.75 over pixel centres, edges repeated."""
    a = -0.75
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centres - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weight = np.where(distance <= 1, near, far)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return weights
