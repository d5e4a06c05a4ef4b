"""A model whose kernels are stored in eight bits: nearly the same probabilities, and every mode of generation."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import emu_jax
from emu_jax.checkpoints.model_directory import save_model
from emu_jax.errors import UserError
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.layers.int8 import Int8Kernel
from emu_jax.sharding.mesh import make_mesh, parse_mesh
from tests.generation.conftest import LINES

IMAGE = np.full((8, 8, 3), (200, 0, 0), np.uint8)


@pytest.fixture(scope="module")
def directory(tiny: EmuPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = emu_jax.data.tokenizer.train_tokenizer(LINES * 4, folder / "tokenizer.model", vocab_size=300)
    assert tokenizer.vocab_size == tiny.tokenizer.vocab_size
    save_model(folder / "emu", tiny.config, tiny.params, tokenizer=folder / "tokenizer.model")
    return folder / "emu"


@pytest.fixture(scope="module")
def int8(directory: Path) -> EmuPipeline:
    return emu_jax.load(directory, quantization="int8")


def test_every_kernel_has_eight_bits(tiny: EmuPipeline, int8: EmuPipeline) -> None:
    box = lambda leaf: isinstance(leaf, Int8Kernel)
    flat = traverse_util.flatten_dict(int8.params, is_leaf=lambda _, leaf: box(leaf))
    kernels = {path for path in traverse_util.flatten_dict(tiny.params) if path[-1] == "kernel"}
    quantized = {path for path, leaf in flat.items() if box(leaf)}
    convolutions = {path for path in kernels if path[-2] == "patch_embedding"}
    assert quantized == kernels - convolutions
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert size([flat[path] for path in quantized]) < 0.27 * size([leaf.unbox() for leaf in flat.values() if box(leaf)])


def test_probabilities_are_close(tiny: EmuPipeline, int8: EmuPipeline) -> None:
    prompt = tiny.build_prompt([IMAGE, "what is this? a small green square."])
    tokens, images = prompt.tokens[None], np.stack(prompt.images)[None]
    expected = jax.nn.log_softmax(tiny.forward(tokens, images).logits)
    got = jax.nn.log_softmax(int8.forward(tokens, images).logits)
    divergence = jnp.sum(jnp.exp(expected) * (expected - got), axis=-1)
    assert 0 < float(divergence.mean()) < 1e-3


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.0}])
def test_text(int8: EmuPipeline, options: dict) -> None:
    assert isinstance(int8.generate_text([IMAGE, "what"], max_new_tokens=5, **options), str)


def test_embeddings(tiny: EmuPipeline, int8: EmuPipeline) -> None:
    expected, got = (emu.generate_embeddings([IMAGE, "a red circle"]) for emu in (tiny, int8))
    assert 0 < np.linalg.norm(got - expected) < 0.1 * np.linalg.norm(expected)


def test_a_mesh_gives_the_same_numbers(directory: Path, int8: EmuPipeline) -> None:
    mesh = make_mesh(parse_mesh("fsdp:2,tensor:4"))
    sharded = emu_jax.load(directory, quantization="int8", mesh=mesh)
    kernel = sharded.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.values.sharding.shard_shape(kernel.values.shape) != kernel.values.shape
    np.testing.assert_allclose(sharded.generate_embeddings("a"), int8.generate_embeddings("a"), atol=1e-4)


def test_an_unknown_quantization_is_refused(directory: Path) -> None:
    with pytest.raises(UserError, match="quantization must be 'int8', not 'int3'"):
        emu_jax.load(directory, quantization="int3")
