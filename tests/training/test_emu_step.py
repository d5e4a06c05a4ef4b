"""The train step of a true Emu: the same on every mesh, held in parts, exact in microbatches.

Adam's first moment after one step from zero is (1 - b1) times the gradient, so the very step that `train` compiles
shows its gradient.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.data.batch import BatchConfig
from emu_jax.losses import embedding_variance
from emu_jax.models.config import EmuConfig
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.specs import bytes_per_device
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.partition import flatten
from emu_jax.training.prefetch import batch_shardings
from emu_jax.training.stages.pretrain import PretrainConfig, PretrainStage, Spread
from emu_jax.training.state import abstract_state, create_state
from emu_jax.training.step import make_train_step

VOCAB, PAD, BOI, EOI, IMAGE = 256, 250, 251, 252, 253
BATCH = BatchConfig(batch_size=8, length=24, max_images=2, image_size=8)
CONFIG = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, clip_norm=None, weight_decay=0.0)


def small_emu() -> EmuConfig:
    """Every size a multiple of eight, so that nothing need be whole; dropout would differ by microbatch."""
    config = emu_tiny(vocab_size=VOCAB)
    heads = {"num_heads": 8}
    vision = {"image_size": 8, "patch_size": 4, "width": 16, "num_layers": 1, "mlp_dim": 32, **heads}
    former = {"num_image_tokens": 4, "width": 16, "head_dim": 8, "mlp_dim": 32, **heads}
    decoder = {"width": 32, "num_layers": 2, "num_kv_heads": 8, "mlp_dim": 64, **heads}
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, **vision),
        causal_former=dataclasses.replace(config.causal_former, **former),
        decoder=dataclasses.replace(config.decoder, **decoder),
    )


def stage(**settings) -> PretrainStage:
    return PretrainStage(
        small_emu(), BATCH, image_token_id=IMAGE, sources=("one", "two"), config=PretrainConfig(**settings)
    )


def batch() -> dict[str, np.ndarray]:
    """Rows of two documents: a picture with text, in half of the rows a second one, and padding of many lengths."""
    rng = np.random.default_rng(0)
    B, L, I = BATCH.batch_size, BATCH.length, BATCH.max_images
    tokens = np.full((B, L), PAD, np.int32)
    segments, positions, sources = np.zeros((3, B, L), np.int32)
    number = np.zeros(B, np.int32)
    for row in range(B):
        place = 0
        for document in range(1 + row % 2):
            text = rng.integers(3, 240, rng.integers(2, 6))
            ids = np.concatenate([[1, BOI, *[IMAGE] * 4, EOI], text, [2]])
            end = place + len(ids)
            tokens[row, place:end], segments[row, place:end] = ids, document + 1
            positions[row, place:end] = np.arange(len(ids))
            sources[row, place:end] = document
            place, number[row] = end, document + 1
    following = np.roll(tokens, -1, axis=1)
    same = (segments > 0) & (segments == np.roll(segments, -1, axis=1))
    same[:, -1] = False
    return {
        "tokens": tokens,
        "positions": positions,
        "segment_ids": segments,
        "images": rng.integers(0, 256, (B, I, 8, 8, 3)).astype(np.uint8),
        "num_images": number,
        "text_loss_mask": (same & (following < PAD)).astype(np.float32),
        "regression_mask": (same & np.isin(tokens, (BOI, IMAGE))).astype(np.float32),
        "source_ids": sources,
    }


@functools.cache
def first_state():
    """On one device, and taken to each mesh from there: compiling the drawing of parameters is most of a small test."""
    mesh = make_mesh(MeshConfig(1, 1, 1), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        return create_state(stage(), make_optimizer(CONFIG, steps=10), config=CONFIG, mesh=mesh, seed=0)


@functools.cache
def stepped(sizes: tuple[int, int, int], *, accumulation: int = 1, **settings):
    """(state after one step, its metrics, the lowered step, the compiled step, the state's shapes before)."""
    mesh = make_mesh(MeshConfig(*sizes), devices=jax.devices()[: int(np.prod(sizes))])
    one = stage(**settings)
    with jax.set_mesh(mesh):
        begun = abstract_state(one, make_optimizer(CONFIG, steps=10), config=CONFIG, mesh=mesh)
        placed = jax.tree.map(lambda x, to: jax.device_put(np.asarray(x), to.sharding), first_state(), begun)
        rows = jax.device_put(batch(), batch_shardings(one.batch_spec(), mesh=mesh))
        step = make_train_step(one, config=CONFIG, steps=10, accumulation=accumulation)
        out = (jax.tree.map(lambda x: x.sharding, begun), NamedSharding(mesh, PartitionSpec()))  # as the loop has it
        lowered = jax.jit(step, donate_argnums=0, out_shardings=out).lower(placed, rows)
        compiled = lowered.compile()
        state, metrics = compiled(placed, rows)
    return state, metrics, lowered, compiled, begun


def assert_same_step(one, other) -> None:
    """Loss, metrics and every gradient within fp32 rounding: of sums over a few hundred terms, in another order."""
    (state, metrics, *_), (state_2, metrics_2, *_) = one, other
    for name in set(metrics.names) - {"visual_embedding_rank"}:  # square roots of eigenvalues that are rounding errors
        np.testing.assert_allclose(metrics_2.value(name), metrics.value(name), rtol=2e-5, atol=1e-6, err_msg=name)
    gradients, gradients_2 = (flatten(s.opt_state[0].mu) for s in (state, state_2))
    for path, gradient in gradients.items():
        largest = float(jnp.abs(gradient).max())
        assert largest > 0, path
        np.testing.assert_allclose(gradients_2[path], gradient, rtol=0, atol=1e-5 * largest, err_msg=path)


@pytest.mark.e2e
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)], ids=str)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(sizes):
    assert_same_step(stepped((1, 1, 1)), stepped(sizes))


@pytest.mark.e2e
def test_a_device_holds_an_eighth_and_constraints_reach_the_program():
    state, _, lowered, compiled, begun = stepped((1, 4, 2))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    held = bytes_per_device((state.params, state.opt_state))
    assert held < 1.1 * total / 8  # norms, biases, positions and patches are cut less, and count for little
    rows = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stage().batch_spec()))
    arguments = compiled.memory_analysis().argument_size_in_bytes
    assert arguments < held + rows / 4 + 2048
    for path, kernel in flatten(state.params).items():
        if "kernel" in path and "patch_embed" not in path:
            assert {shard.data.size * 8 for shard in kernel.addressable_shards} == {kernel.size}, path
    # The step gives its parameters back as it took them, and the layers' activations are held to the mesh.
    same = jax.tree.map(lambda x, before: x.sharding.is_equivalent_to(before.sharding, x.ndim), state, begun)
    assert all(jax.tree.leaves(same))
    text = lowered.as_text()
    constraints = text.count("sdy.sharding_constraint") + text.count("@Sharding")
    assert constraints >= 10
    assert "all-gather" in compiled.as_text()  # parameters are whole only where they are used


@pytest.mark.e2e
@pytest.mark.parametrize("normalize", [False, True])
def test_microbatches_are_exactly_the_large_batch(normalize):
    whole = stepped((1, 1, 1), normalize_targets=normalize, monitors=False)
    parts = stepped((1, 1, 1), accumulation=4, normalize_targets=normalize, monitors=False)
    assert_same_step(whole, parts)


def test_the_spread_of_parts_is_that_of_the_whole():
    """Different means and counts in every part; an empty one counts nothing."""
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(loc, 1.0 + loc, (6, 4, 8)), jnp.float32) for loc in (0.0, 1.0, 3.0)]
    masks = [jnp.asarray(mask, jnp.float32) for mask in ([1, 1, 1, 1, 0, 0], [0] * 6, [1, 0, 1, 0, 0, 0])]
    spreads = []
    for part, mask in zip(parts, masks, strict=True):
        mean = (part * mask[:, None, None]).sum(0) / max(mask.sum(), 1)
        spreads.append(Spread(mask.sum(), mean, embedding_variance(part, mask=mask)))
    combined = stage().combine(jax.tree.map(lambda *x: jnp.stack(x), *spreads))
    whole = embedding_variance(jnp.concatenate(parts), mask=jnp.concatenate(masks))
    np.testing.assert_allclose(combined, whole, rtol=1e-5)
