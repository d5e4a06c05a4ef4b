"""The conversion tables of the visual decoder: complete for the published sizes, and strict about their input."""

import json

import flax.traverse_util
import jax
import numpy as np
import pytest

from emu_jax.convert.diffusion_table import unet_table, vae_table
from emu_jax.convert.table import check_tensors, read_params, tree_to_tensors
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import unet_inputs, vae_inputs
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE as Autoencoder
from emu_jax.errors import UserError
from emu_jax.io.tensors import tensor_of
from emu_jax.sharding import axes
from emu_jax.sharding.specs import unbox
from tests.convert.release import published_shapes

EMU_UNET = UNetConfig(cross_attention_dim=5120)
SMALL_VAE = VAEConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=8)


def boxed(module, inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize(
    ("table", "module", "inputs", "name"),
    [
        (unet_table(EMU_UNET), UNet(EMU_UNET), unet_inputs(EMU_UNET), "unet_state_dict.tsv"),
        (vae_table(VAEConfig()), Autoencoder(VAEConfig()), vae_inputs(VAEConfig()), "vae_state_dict.tsv"),
    ],
)
def test_names_and_shapes_are_the_published_ones(table, module, inputs, name):
    assert {row.torch: row.torch_shape for row in table} == published_shapes(name)
    ours = flax.traverse_util.flatten_dict(unbox(boxed(module, inputs)), sep="/")
    assert {row.path: row.shape for row in table} == {path: leaf.shape for path, leaf in ours.items()}


@pytest.mark.parametrize(
    ("module", "inputs"), [(UNet(EMU_UNET), unet_inputs(EMU_UNET)), (Autoencoder(VAEConfig()), vae_inputs(VAEConfig()))]
)
def test_every_parameter_names_known_axes(module, inputs):
    leaves = jax.tree.leaves(boxed(module, inputs), is_leaf=lambda leaf: hasattr(leaf, "names"))
    for leaf in leaves:
        assert hasattr(leaf, "names")
        assert set(leaf.names) - {None} <= set(axes.PARAMETER_AXES)
        assert any(leaf.names)


@pytest.fixture(scope="module")
def small():
    """The table, the shapes and the tensors of a small autoencoder."""
    table = vae_table(SMALL_VAE)
    rng = np.random.default_rng(0)
    tensors = {row.torch: tensor_of(row.torch, rng.normal(size=row.torch_shape).astype(np.float32)) for row in table}
    return table, unbox(boxed(Autoencoder(SMALL_VAE), vae_inputs(SMALL_VAE))), tensors


def test_both_directions_are_inverse(small):
    table, shapes, tensors = small
    params = read_params(table, tensors)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    back = {tensor.name: tensor.read() for tensor in tree_to_tensors(table, params)}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor.read())


def test_missing_and_unknown_names_are_both_listed(small):
    table, _, tensors = small
    wrong = {("other" if name == "quant_conv.bias" else name): tensor for name, tensor in tensors.items()}
    with pytest.raises(UserError, match=r"vae do not fit .*: 1 missing \(quant_conv\.bias\); 1 unknown \(other\)"):
        check_tensors(table, wrong, source="vae")
    params = read_params(table, tensors)
    params["other"] = params.pop("quant_conv")
    message = r"2 missing \(quant_conv/kernel, quant_conv/bias\); 2 unknown \(other/kernel, other/bias\)"
    with pytest.raises(UserError, match=message):
        tree_to_tensors(table, params)


def test_a_wrong_shape_is_named(small):
    table, _, tensors = small
    wrong = tensors | {"quant_conv.bias": tensor_of("quant_conv.bias", np.zeros(3, np.float32))}
    with pytest.raises(UserError, match=r"quant_conv\.bias is \[3\], expected \[8\]"):
        check_tensors(table, wrong, source="vae")


def test_configs_are_equal_after_a_round_trip_through_diffusers_json():
    for config in (
        EMU_UNET,
        UNetConfig(attention_head_dim=(5, 10, 20, 20), use_linear_projection=True, sample_size=96),
        SMALL_VAE,
    ):
        assert type(config).from_diffusers(json.loads(json.dumps(config.to_diffusers()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
        ({"norm_num_groups": 7}, "do not divide into norm_num_groups"),
        ({"block_out_channels": [320, 640]}, "one entry per level"),
        ({"attention_head_dim": 7}, "attention heads"),
        ({"transformer_layers_per_block": [1, 2, 10, 10]}, r"transformer_layers_per_block must be int, not \[1, 2, 10"),
        ({"sample_size": [64, 96]}, r"sample_size must be int, not \[64, 96\]"),
    ],
)
def test_unsupported_unets_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        UNetConfig.from_diffusers(EMU_UNET.to_diffusers() | change)
