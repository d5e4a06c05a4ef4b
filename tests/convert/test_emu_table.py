"""The conversion table: every parameter of an Emu has a row, and the 14B's rows are the published names and shapes."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import traverse_util

from emu_jax.checkpoints.model_directory import boxed_shapes
from emu_jax.convert.emu_table import (
    emu_table,
    peft_name,
    unused_shapes,
)
from emu_jax.convert.sources import lora_rank, release_name
from emu_jax.io.tensors import tensor_of
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.presets import emu_14b
from emu_jax.sharding.specs import unbox
from tests.convert.release import published_shapes, small_config

EMU_14B = 14_208_419_072  # parameters in the released file
EMU_14B_WITHOUT_T5_TABLE = 14_183_744_768
EMU_I_LORA = 40 * 4 * 16 * (5120 + 5120)


def exported_shapes(config):
    return {name: row.torch_shape for row in emu_table(config) for name in row.names} | unused_shapes(config)


def emu_instruct_14b():
    return dataclasses.replace(emu_14b(vocab_size=32006), lora=LoraConfig())


@pytest.mark.parametrize("config", [small_config(), small_config(lora=True), emu_14b(), emu_instruct_14b()])
def test_every_parameter_has_one_row(config):
    shapes = {p: s.shape for p, s in traverse_util.flatten_dict(unbox(boxed_shapes(config)), sep="/").items()}
    rows = emu_table(config)
    assert {row.path: row.stacked_shape for row in rows} == shapes
    assert len({name for row in rows for name in row.names}) == sum(len(row.names) for row in rows)


def test_totals_of_the_14b():
    shapes = exported_shapes(emu_14b())
    total = sum(map(math.prod, shapes.values()))
    assert total == EMU_14B
    assert total - math.prod(shapes["cformer.cformer.embed_tokens.weight"]) == EMU_14B_WITHOUT_T5_TABLE


def test_total_of_emu_instruct():
    total = sum(map(math.prod, exported_shapes(emu_instruct_14b()).values()))
    assert total == EMU_14B + 2 * 2 * 5120 + EMU_I_LORA


@pytest.mark.parametrize(
    ("config", "table"), [(emu_14b(), "emu_14b_state_dict.tsv"), (emu_instruct_14b(), "emu_instruct_state_dict.tsv")]
)
def test_names_and_shapes_are_the_published_ones(config, table):
    rename = peft_name if config.lora is not None else (lambda name: name)
    assert {rename(name): shape for name, shape in exported_shapes(config).items()} == published_shapes(table)


@pytest.mark.parametrize("lora", [False, True])
def test_both_directions_are_bit_exact(lora):
    rng = np.random.default_rng(0)
    for row in emu_table(small_config(lora=lora)):
        tensor = rng.standard_normal(row.torch_shape, np.float32)
        ours = row.to_ours(tensor)
        assert ours.shape == row.shape
        np.testing.assert_array_equal(row.to_torch(ours), tensor, err_msg=row.torch)


def test_linear_maps_are_unchanged():
    """`x W^T` in PyTorch equals our contraction over the kernel's input axes, including heads."""
    rng = np.random.default_rng(1)
    rows = {row.path: row for row in emu_table(small_config())}
    row = rows["causal_former/blocks/self_attention/query/kernel"]  # [D, N, H]
    weight, x = rng.standard_normal(row.torch_shape), rng.standard_normal(row.torch_shape[1])
    np.testing.assert_allclose(np.einsum("d,dnh->nh", x, row.to_ours(weight)).ravel(), weight @ x, atol=1e-12)
    row = rows["causal_former/blocks/self_attention/out/kernel"]  # [N, H, D]
    weight, x = rng.standard_normal(row.torch_shape), rng.standard_normal(row.torch_shape[1])
    heads = x.reshape(row.shape[:2])
    np.testing.assert_allclose(np.einsum("nh,nhd->d", heads, row.to_ours(weight)), weight @ x, atol=1e-12)


def test_vocabulary_tables_are_padded_with_zeros():
    row = next(row for row in emu_table(small_config()) if row.path == "decoder/token_embedding")
    ours = row.to_ours(np.ones(row.torch_shape, np.float32))
    assert ours.shape[0] == 384
    assert ours[:300].min() == 1
    assert np.abs(ours[300:]).max() == 0


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("model.norm.weight", "decoder.lm.model.norm.weight"),
        ("lm_head.weight", "decoder.lm.lm_head.weight"),
        ("module.ln_visual.bias", "ln_visual.bias"),
        ("blocks.3.norm1.bias", "visual.blocks.3.norm1.bias"),
        ("norm.weight", "visual.norm.weight"),
        ("decoder.lm.base_model.model.model.norm.weight", "decoder.lm.model.norm.weight"),
        ("logit_scale", None),
        ("text.token_embedding.weight", None),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
    ],
)
def test_release_names_of_other_layouts(name, release):
    assert release_name(name) == release


def test_the_rank_is_that_of_the_adapters():
    name = "decoder.lm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    tensors = {"a": tensor_of("a", np.zeros(1))}
    assert lora_rank(tensors) is None
    assert lora_rank(tensors | {release_name(name): tensor_of(name, np.zeros((5, 20)))}) == 5


def test_shapes_of_the_14b_need_no_memory():
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(unbox(boxed_shapes(emu_14b()))))
