"""The stage `instruct`: LoRA by pattern, two new token rows, frozen parameters in bfloat16 without optimizer state."""

import dataclasses

import jax
import numpy as np
import pytest

from emu_jax.layers.linear import LoraConfig
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.partition import flatten
from emu_jax.training.runs.emu import without_decay
from emu_jax.training.stages.pretrain import NEW_TOKEN_TABLES, PretrainConfig, PretrainStage
from emu_jax.training.state import create_state
from emu_jax.training.step import make_train_step
from tests.training.test_emu_step import BATCH, IMAGE, VOCAB, batch, small_emu

TARGETS = ("^decoder/blocks/attention/query$", "^decoder/blocks/mlp/", "^causal_former/blocks/cross_attention/value$")
TABLES = ("decoder/token_embedding", "lm_head/projection/kernel")


@pytest.fixture(scope="module")
def trained():
    """Return the flat parameters before and after three steps, and the paths of the optimizer's moments."""
    model = dataclasses.replace(small_emu(), lora=LoraConfig(rank=2, alpha=4.0, targets=TARGETS))
    config = PretrainConfig(
        regression_weight=0.0,
        trainable=("lora", "^causal_former/projection/"),
        new_tokens=2,
        frozen_dtype="bfloat16",
    )
    stage = PretrainStage(model, BATCH, image_token_id=IMAGE, config=config, name="instruct")
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1)
    exempt = dataclasses.replace(optimizer, no_decay=(*optimizer.no_decay, *NEW_TOKEN_TABLES))
    rows = batch()
    for known, new in ((1, VOCAB - 2), (2, VOCAB - 1)):  # new tokens start and end each document
        rows["tokens"] = np.where(rows["tokens"] == known, new, rows["tokens"])
    mesh = make_mesh(MeshConfig(1, 1, 1), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = create_state(stage, make_optimizer(exempt, steps=9), config=exempt, mesh=mesh, seed=0)
        before = {path: np.asarray(x) for path, x in flatten(state.params).items()}
        step = jax.jit(make_train_step(stage, config=exempt, steps=9))
        for _ in range(3):
            state, _ = step(state, rows)
    after = {path: np.asarray(x) for path, x in flatten(state.params).items()}
    return before, after, set(flatten(state.opt_state[0].mu))


def test_adapters_exist_where_a_pattern_matches(trained):
    adapted = {path.rpartition("/")[0] for path in trained[0] if "/lora_a" in path}
    assert adapted == {
        "decoder/blocks/attention/query",
        "decoder/blocks/mlp/gate",
        "decoder/blocks/mlp/up",
        "decoder/blocks/mlp/down",
        "causal_former/blocks/cross_attention/value",
    }


def test_only_what_trains_changes_and_has_moments(trained):
    before, after, moments = trained
    trains = {path for path in before if "/lora_" in path or path.startswith("causal_former/projection/")}
    assert moments == trains | set(TABLES)
    for path, array in before.items():
        if path in trains:
            assert np.abs(after[path] - array).max() > 0, path
            assert array.dtype == np.float32, path
        elif path not in TABLES:
            np.testing.assert_array_equal(after[path], array, err_msg=path)
            assert array.dtype.name == "bfloat16", path


def test_only_the_rows_of_new_tokens_change(trained):
    before, after, _ = trained
    for path in TABLES:
        old, new = (x[path] if path == TABLES[0] else x[path].T for x in (before, after))
        np.testing.assert_array_equal(new[: VOCAB - 2], old[: VOCAB - 2], err_msg=path)
        np.testing.assert_array_equal(new[VOCAB:], old[VOCAB:], err_msg=path)
        used = VOCAB - 2 if path == TABLES[0] else VOCAB - 1  # as an input, and as a label
        assert np.abs(new[used] - old[used]).max() > 0, path


def test_tables_with_frozen_rows_have_no_weight_decay():
    @dataclasses.dataclass(frozen=True)
    class Train:
        optimizer: OptimizerConfig

    @dataclasses.dataclass(frozen=True)
    class Run:
        pretrain: PretrainConfig
        train: Train

    train = Train(OptimizerConfig())
    assert without_decay(Run(PretrainConfig(), train)) is train
    exempt = without_decay(Run(PretrainConfig(new_tokens=2), train)).optimizer.no_decay
    assert set(NEW_TOKEN_TABLES) <= set(exempt)
