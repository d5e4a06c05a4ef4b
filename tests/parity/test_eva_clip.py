"""The vision encoder against the same model written in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.convert.load import load_model
from emu_jax.convert.positions import resize_positions
from emu_jax.models.emu import Emu
from tests.convert.release import random_state, small_config, with_parts, write_release

torch = pytest.importorskip("torch")

RELATIVE = 1e-5  # of the largest value


def eva(state, images, *, layers, heads):
    """Return the vision features of EVA-01-CLIP for images `[n, 3, H, W]`; weights have their names in the release."""
    functional = torch.nn.functional
    weights = {name: torch.from_numpy(array) for name, array in state.items()}

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], eps=1e-6)

    patch = weights["visual.patch_embed.proj.weight"]
    x = functional.conv2d(images, patch, weights["visual.patch_embed.proj.bias"], stride=patch.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.cls_token"].expand(len(x), -1, -1), x], dim=1) + weights["visual.pos_embed"]
    for layer in range(layers):
        block = f"visual.blocks.{layer}."
        q_bias, v_bias = weights[block + "attn.q_bias"], weights[block + "attn.v_bias"]
        bias = torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])
        qkv = functional.linear(norm(x, block + "norm1"), weights[block + "attn.qkv.weight"], bias)
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        proj = block + "attn.proj."
        x = x + functional.linear(attended, weights[proj + "weight"], weights[proj + "bias"])
        up, down = block + "mlp.fc1.", block + "mlp.fc2."
        hidden = functional.linear(norm(x, block + "norm2"), weights[up + "weight"], weights[up + "bias"])
        x = x + functional.linear(functional.gelu(hidden), weights[down + "weight"], weights[down + "bias"])
    return x


@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": 8, "patch_size": 4, "width": 16, "num_heads": 2, "num_layers": 2, "mlp_dim": 48},
        {"image_size": 28, "patch_size": 7, "width": 44, "num_heads": 4, "num_layers": 3, "mlp_dim": 100},
    ],
)
def test_image_features(tmp_path, sizes):
    config = with_parts(small_config(), vision=sizes)
    state = {name: array * 0.3 for name, array in random_state(config).items()}
    params = load_model(write_release(tmp_path / "release", config, state)).params
    side = config.vision.image_size
    images = np.random.default_rng(0).standard_normal((3, 3, side, side), np.float32)
    expected = eva(state, torch.from_numpy(images), layers=sizes["num_layers"], heads=sizes["num_heads"]).numpy()
    model = Emu(config, image_token_id=299)
    pixels = jnp.asarray(images.transpose(0, 2, 3, 1))
    actual = jax.jit(lambda p, x: model.apply({"params": p}, x, method="image_features"))(params, pixels)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize(("old", "new"), [(16, 24), (16, 32), (7, 5), (4, 4)])
def test_positions_are_interpolated_like_in_torch(old, new):
    positions = np.random.default_rng(0).standard_normal((1, 1 + old * old, 6), np.float32)
    grid = torch.from_numpy(positions[:, 1:]).reshape(1, old, old, 6).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(1, new * new, 6).numpy()
    actual = resize_positions(positions, 1 + new * new)
    np.testing.assert_array_equal(actual[:, 0], positions[:, 0])
    np.testing.assert_allclose(actual[:, 1:], expected, atol=1e-5)
