"""The train step of a small Emu: equal on every mesh, sharded, exact in microbatches.

Adam's first moment after the first step is (1 - b1) times the gradient, so the step that `train` compiles also returns
its gradient.
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
from emu_jax.training.stages.pretrain import VISION_PARTS, EmbeddingStatistics, PretrainConfig, PretrainStage
from emu_jax.training.state import abstract_state, create_state
from emu_jax.training.step import make_train_step

VOCAB, PAD, BOI, EOI, IMAGE = 256, 250, 251, 252, 253
BATCH = BatchConfig(batch_size=8, length=24, max_images=2, image_size=8)
CONFIG = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, clip_norm=None, weight_decay=0.0)


def small_emu() -> EmuConfig:
    """Return sizes that are multiples of eight, for sharding, without dropout, whose masks depend on microbatches."""
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
    """Rows with one document (an image with text) or two, and padding of various lengths."""
    rng = np.random.default_rng(0)
    B, L, I = BATCH.batch_size, BATCH.length, BATCH.max_images
    tokens = np.full((B, L), PAD, np.int32)
    segments, positions, sources = np.zeros((3, B, L), np.int32)
    num_images = np.zeros(B, np.int32)
    for row in range(B):
        start = 0
        for document in range(1 + row % 2):
            text = rng.integers(3, 240, rng.integers(2, 6))
            ids = np.concatenate([[1, BOI, *[IMAGE] * 4, EOI], text, [2]])
            end = start + len(ids)
            tokens[row, start:end], segments[row, start:end] = ids, document + 1
            positions[row, start:end] = np.arange(len(ids))
            sources[row, start:end] = document
            start, num_images[row] = end, document + 1
    following = np.roll(tokens, -1, axis=1)
    same = (segments > 0) & (segments == np.roll(segments, -1, axis=1))
    same[:, -1] = False
    return {
        "tokens": tokens,
        "positions": positions,
        "segment_ids": segments,
        "images": rng.integers(0, 256, (B, I, 8, 8, 3)).astype(np.uint8),
        "num_images": num_images,
        "text_loss_mask": (same & (following < PAD)).astype(np.float32),
        "regression_mask": (same & np.isin(tokens, (BOI, IMAGE))).astype(np.float32),
        "source_ids": sources,
    }


@functools.cache
def first_state():
    """Return a new state on one device, to be copied to each mesh: compiling its initialization is slow."""
    mesh = make_mesh(MeshConfig(1, 1, 1), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        return create_state(stage(), make_optimizer(CONFIG, steps=10), config=CONFIG, mesh=mesh, seed=0)


@functools.cache
def stepped(sizes: tuple[int, int, int], *, accumulation: int = 1, **settings):
    """Return (state after one step, its metrics, the lowered step, the compiled step, the state's shapes before)."""
    mesh = make_mesh(MeshConfig(*sizes), devices=jax.devices()[: int(np.prod(sizes))])
    one = stage(**settings)
    with jax.set_mesh(mesh):
        before = abstract_state(one, make_optimizer(CONFIG, steps=10), config=CONFIG, mesh=mesh)
        state = jax.tree.map(lambda x, to: jax.device_put(np.asarray(x), to.sharding), first_state(), before)
        rows = jax.device_put(batch(), batch_shardings(one.batch_spec(), mesh=mesh))
        step = make_train_step(one, config=CONFIG, steps=10, accumulation=accumulation)
        out = (jax.tree.map(lambda x: x.sharding, before), NamedSharding(mesh, PartitionSpec()))  # as in the loop
        lowered = jax.jit(step, donate_argnums=0, out_shardings=out).lower(state, rows)
        compiled = lowered.compile()
        state, metrics = compiled(state, rows)
    return state, metrics, lowered, compiled, before


def gradients(step) -> dict[str, jax.Array]:
    return flatten(step[0].opt_state[0].mu)


def assert_equal_gradient(found: jax.Array, expected: jax.Array, path: str) -> None:
    """Compare within float32 rounding of sums over a few hundred terms in another order."""
    largest = float(jnp.abs(expected).max())
    assert largest > 0, path
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest, err_msg=path)


def assert_same_step(found, expected) -> None:
    """Compare loss, metrics and all gradients."""
    metrics = expected[1]
    for name in set(metrics.names) - {"visual_embedding_rank"}:  # square roots of eigenvalues that are rounding errors
        np.testing.assert_allclose(found[1].value(name), metrics.value(name), rtol=2e-5, atol=1e-6, err_msg=name)
    for path, gradient in gradients(expected).items():
        assert_equal_gradient(gradients(found)[path], gradient, path)


@pytest.mark.e2e
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)], ids=str)
def test_loss_and_gradients_are_equal_on_every_mesh(sizes):
    assert_same_step(stepped(sizes), stepped((1, 1, 1)))


@pytest.mark.e2e
def test_the_state_is_sharded_over_all_devices_and_activations_are_constrained():
    state, _, lowered, compiled, before = stepped((1, 4, 2))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    per_device = bytes_per_device((state.params, state.opt_state))
    assert per_device < 1.1 * total / 8  # norms, biases, positions and patches are small and sharded less
    rows = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stage().batch_spec()))
    arguments = compiled.memory_analysis().argument_size_in_bytes
    assert arguments < per_device + rows / 4 + 2048
    for path, kernel in flatten(state.params).items():
        if "kernel" in path and "patch_embed" not in path:
            assert {shard.data.size * 8 for shard in kernel.addressable_shards} == {kernel.size}, path
    # The step returns its parameters in their shardings, and the activations of layers are constrained.
    same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, before)
    assert all(jax.tree.leaves(same))
    text = lowered.as_text()
    constraints = text.count("sdy.sharding_constraint") + text.count("@Sharding")
    assert constraints >= 10
    assert "all-gather" in compiled.as_text()  # parameters are complete only where they are used


@pytest.mark.e2e
@pytest.mark.parametrize("normalize", [False, True])
def test_microbatches_equal_the_full_batch(normalize):
    full = stepped((1, 1, 1), normalize_targets=normalize, monitors=False)
    split = stepped((1, 1, 1), accumulation=4, normalize_targets=normalize, monitors=False)
    assert_same_step(split, full)


@pytest.mark.e2e
def test_detach_regression_leaves_only_the_text_gradient_on_the_vision_side():
    both, text = gradients(stepped((1, 1, 1))), gradients(stepped((1, 1, 1), regression_weight=0.0))
    detached = gradients(stepped((1, 1, 1), detach_regression=True))
    for path, gradient in detached.items():
        if path.split("/")[0] in VISION_PARTS:
            assert_equal_gradient(gradient, text[path], path)
            assert jnp.abs(both[path] - text[path]).max() > 1e-3 * jnp.abs(text[path]).max(), path
        else:
            assert_equal_gradient(gradient, both[path], path)


def test_statistics_of_microbatches_combine_to_those_of_the_full_batch():
    """Each part has another mean and count; one is empty."""
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(loc, 1.0 + loc, (6, 4, 8)), jnp.float32) for loc in (0.0, 1.0, 3.0)]
    masks = [jnp.asarray(mask, jnp.float32) for mask in ([1, 1, 1, 1, 0, 0], [0] * 6, [1, 0, 1, 0, 0, 0])]
    statistics = []
    for part, mask in zip(parts, masks, strict=True):
        mean = (part * mask[:, None, None]).sum(0) / max(mask.sum(), 1)
        statistics.append(EmbeddingStatistics(mask.sum(), mean, embedding_variance(part, mask=mask)))
    combined = stage().combine_statistics(jax.tree.map(lambda *x: jnp.stack(x), *statistics))
    expected = embedding_variance(jnp.concatenate(parts), mask=jnp.concatenate(masks))
    np.testing.assert_allclose(combined, expected, rtol=1e-5)
