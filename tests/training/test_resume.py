"""The comparison of a run's config with that of its newest checkpoint."""

import dataclasses

import jax.numpy as jnp
import pytest

from emu_jax.checkpoints.manager import Checkpoints
from emu_jax.config import to_dict
from emu_jax.data.batch import BatchConfig
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.errors import UserError
from emu_jax.models.presets import PRESETS
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from emu_jax.training.resume import check_resume, compare
from emu_jax.training.runs.emu import EmuRunConfig


def run_config(**train):
    model = PRESETS["emu_tiny"](vocab_size=300)
    batch = BatchConfig(batch_size=8, length=48, max_images=3, image_size=model.vision.image_size)
    data = DataConfig(
        sets=(SetConfig("data/a", weight=2.0),), batch=batch, num_image_tokens=model.causal_former.num_image_tokens
    )
    return EmuRunConfig(model=model, tokenizer="t.model", data=data, train=TrainConfig(steps=8, **train))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resume") / "run"
    checkpoints = Checkpoints(workdir / "checkpoints")
    arrays = {"w": jnp.ones(4)}
    checkpoints.save(8, params=arrays, optimizer=arrays, data={}, config=to_dict(run_config()))
    checkpoints.close()
    (workdir / "tokenizer.model").write_bytes(b"one")
    return workdir


def check(config, workdir, tokenizer=None):
    return check_resume(config, workdir / "checkpoints", tokenizer=tokenizer, workdir=workdir)


def changed(config, path, value):
    """Return `config` with another value of a field such as "model.decoder.rope_theta"."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def test_an_equal_config_and_a_new_workdir_are_accepted(workdir, tmp_path):
    assert check(run_config(), workdir) is None
    assert check(run_config(), tmp_path) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.decoder.rope_theta", 500.0),
        ("model.decoder.norm_eps", 1e-5),
        ("model.decoder.num_layers", 7),
        ("model.causal_former.dropout", 0.3),
        ("model.dtype", "bfloat16"),
        ("stage", "caption_warmup"),
        ("instruct", True),
        ("pretrain.trainable", ("decoder.*",)),
        ("pretrain.regression_weight", 2.0),
        ("data.batch.batch_size", 16),
        ("data.batch.length", 47),
        ("data.image_first", 0.75),
        ("data.predict_boi", True),
        ("data.pool", 17),
        ("data.sets", (SetConfig("data/a", weight=1.0),)),
        ("data.sets", (SetConfig("data/a", weight=2.0), SetConfig("data/b"))),
        ("train.seed", 1),
        ("train.optimizer.b2", 0.95),
        ("train.optimizer.muon", (".*",)),
        ("train.optimizer.moment_dtype", "bfloat16"),
        ("train.optimizer.ema_decay", 0.99),
    ],
)
def test_changes_of_the_arithmetic_or_the_data_order_are_refused(workdir, path, value):
    with pytest.raises(UserError) as error:
        check(changed(run_config(), path, value), workdir)
    name = path if path != "data.sets" else "data.sets["
    for part in (name, "in the checkpoint", "now", f"--config.train.warm_start={workdir}/checkpoints/8", "--workdir"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.steps", 20),
        ("train.optimizer", OptimizerConfig(learning_rate=1.0, schedule=OptimizerConfig().schedule)),
        ("train.optimizer.part_learning_rates", (("decoder", 0.1),)),
        ("train.optimizer.warmup_steps", 3),
        ("train.optimizer.clip_norm", None),
        ("train.log_every", 1),
        ("train.checkpoint", CheckpointConfig(every_steps=3, keep=9, keep_steps=(1, 2))),
        ("train.mesh", MeshConfig(tensor=2)),
        ("train.compiler_options", ("a=b",)),
        ("data.workers", 3),
        ("data.sets", (SetConfig("/mnt/data/a", weight=2.0),)),
        ("evaluation.batches", 9),
        ("model.decoder.saved_activations", ("context",)),
    ],
)
def test_other_changes_are_reported_in_one_line(workdir, path, value):
    line = check(changed(run_config(), path, value), workdir)
    assert line is not None
    assert line.startswith(f"changed since checkpoint 8: {path}")
    assert "\n" not in line


def test_both_values_are_named():
    refused, allowed = compare({"a": {"b": 1}, "stage": "x"}, {"a": {"b": 2}, "stage": "x"})
    assert (refused, allowed) == (["a.b: 1 in the checkpoint, 2 now"], [])


def test_another_tokenizer_is_refused_by_its_content(workdir, tmp_path):
    for name, content in (("same.model", b"one"), ("other.model", b"two")):
        (tmp_path / name).write_bytes(content)
    assert check(run_config(), workdir, tmp_path / "same.model") is None
    with pytest.raises(UserError, match=r"tokenizer: .*other\.model is not the"):
        check(run_config(), workdir, tmp_path / "other.model")


def test_the_config_is_that_of_the_checkpoint_not_of_the_workdir(workdir):
    (workdir / "config.json").write_text("{}")
    assert check(run_config(), workdir) is None
