"""`train` on sets that `prepare-data` made, with the real loader."""

import dataclasses
import json
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import emu_jax
from emu_jax.checkpoints.params import load_params
from emu_jax.cli import train
from emu_jax.cli.config_file import read_config
from emu_jax.config import from_config_dict
from emu_jax.convert.export_torch import prepare_export
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from emu_jax.io.lock import LOCK_FILE, folder_lock
from emu_jax.training.log import read_metrics
from emu_jax.training.runs.emu import EmuRunConfig
from tests.data.conftest import make_set
from tests.evaluation.layouts import write_layout

CONFIG = """
from configs import common

def get_config():
    config = common.base("emu_tiny", steps=8, batch_size=8, length=48, max_images=3)
    config.model.vision.update(dict(image_size=8, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_dim=16))
    config.model.causal_former.update(dict(width=16, num_heads=2, head_dim=8, mlp_dim=16))
    config.model.decoder.update(dict(width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_dim=16))
    config.data.batch.image_size = 8
    config.data.pool = 16
    config.data.sets = common.sets(dict(path="{pairs}", name="pairs"), dict(path="{pages}", name="pages", weight=0.5))
    config.tokenizer = "{tokenizer}"
    config.train.optimizer.schedule = "constant"
    config.train.optimizer.learning_rate = 1e-2
    config.train.optimizer.warmup_steps = 0
    config.train.checkpoint.every_steps = 4
    config.train.log_every = 1
    config.train.mesh.fsdp = 1  # pure data parallelism compiles fastest
    config.train.mesh.data = -1
    return config
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    sets = {name: str(make_set(folder, name, first)) for name, first in (("pairs", 0), ("pages", 300))}
    train_tokenizer([f"number {n} and on and on end" for n in range(200)], folder / "t.model", vocab_size=300)
    text = CONFIG.replace("{tokenizer}", str(folder / "t.model"))
    for name, path in sets.items():
        text = text.replace("{" + name + "}", path)
    (folder / "small.py").write_text(text)
    return folder / "small.py"


@pytest.fixture(scope="module")
def uninterrupted(config_file, tmp_path_factory):
    """The workdir of a run of eight steps."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train.main([f"--config={config_file}", f"--workdir={workdir}"])
    return workdir


def losses(workdir):
    return {record["step"]: record["loss"] for record in read_metrics(workdir) if "loss" in record}


@pytest.mark.e2e
def test_the_workdir_describes_the_run(uninterrupted):
    assert json.loads((uninterrupted / "config.json").read_text())["train"]["steps"] == 8
    assert (uninterrupted / "tokenizer.model").is_file()
    assert "<html" in (uninterrupted / "report.html").read_text()
    record = read_metrics(uninterrupted)[-1]
    expected = {"loss/text/pairs", "loss/text/pages", "loss/regression/pairs", "fill/tokens", "model_tflops_per_second"}
    assert expected | {"visual_embedding_variance", "tokens_per_second", "images_per_second"} <= set(record)
    assert 0.5 < record["fill/tokens"] <= 1.0
    assert "mfu" not in record  # the peak of a CPU is unknown


@pytest.mark.e2e
def test_a_stopped_and_resumed_run_is_bit_for_bit_the_same(uninterrupted, config_file, tmp_path):
    command = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]

    def interrupt():
        while not losses(tmp_path / "run"):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)

    # A stop at an arbitrary step between two checkpoints.
    threading.Thread(target=interrupt, daemon=True).start()
    train.main(command)
    train.main(command)
    assert losses(tmp_path / "run") == losses(uninterrupted)
    one, other = (load_params(path / "checkpoints" / "8") for path in (tmp_path / "run", uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    files = [path / "checkpoints" / "8" / "data" / "process_0-of-1.json" for path in (tmp_path / "run", uninterrupted)]
    one, other = (json.loads(file.read_text()) for file in files)
    assert (one["identity"], one["state"]) == (other["identity"], other["state"])  # the rest, `log`, has times


def contents(folder):
    """Return the bytes and the modification time of every file."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE)
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.e2e
def test_a_refused_or_idle_run_changes_nothing(uninterrupted, config_file, tmp_path, capsys):
    command = [f"--config={config_file}", f"--workdir={uninterrupted}"]
    train_tokenizer([f"{n} other words" for n in range(200)], tmp_path / "t.model", vocab_size=300)
    before = contents(uninterrupted)
    for word in (
        "--config.model.decoder.rope_theta=500.0",
        "--config.model.decoder.num_layers=2",
        "--config.model.vision.norm_eps=0.1",
        "--config.data.batch.length=32",
        f"--config.tokenizer={tmp_path / 't.model'}",
    ):
        for steps in (8, 12):
            with pytest.raises(UserError, match=r"Checkpoint 8 was trained with another config.*train\.warm_start="):
                train.main([*command, word, f"--config.train.steps={steps}"])
    with folder_lock(uninterrupted), pytest.raises(UserError, match="is in use by process"):
        train.main([*command, "--config.train.steps=12"])
    train.main([*command, "--config.train.optimizer.learning_rate=0.5"])
    assert "changed since checkpoint 8: train.optimizer.learning_rate: 0.01 in the checkpoint, 0.5 now" in (
        capsys.readouterr().out
    )
    assert contents(uninterrupted) == before


@pytest.mark.e2e
def test_a_step_is_loaded_with_its_own_config(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    values = json.loads((tmp_path / "run/config.json").read_text())
    values["model"]["decoder"]["rope_theta"] = 500.0
    (tmp_path / "run/config.json").write_text(json.dumps(values))
    for folder in ("run", "run/checkpoints/8"):
        assert emu_jax.load(tmp_path / folder).config.decoder.rope_theta == 10000.0
    assert prepare_export(tmp_path / "run").config.decoder.rope_theta == 10000.0


@pytest.mark.e2e
def test_losses_and_benchmarks_are_evaluated_in_training(config_file, tmp_path):
    write_layout("vqav2", tmp_path / "benchmarks")
    pages = make_set(tmp_path, "pages", 900)
    text = config_file.read_text().replace(
        "    return config",
        f"""    config.evaluation.sets = common.held_out(dict(path="{pages}", name="new"))
    config.evaluation.batches = 2
    config.evaluation.tasks = ({{"name": "vqav2", "limit": 2}},)
    config.evaluation.data = "{tmp_path / "benchmarks"}"
    config.model.decoder.max_length = 1024
    config.train.steps = 4
    config.train.evaluate_every = 2
    config.train.checkpoint.every_steps = 2
    config.train.checkpoint.keep = 1
    config.train.checkpoint.best_metric = "eval/new/loss"
    return config""",
    )
    (tmp_path / "evaluated.py").write_text(text)
    train.main([f"--config={tmp_path / 'evaluated.py'}", f"--workdir={tmp_path / 'run'}"])
    found = {record["step"]: record for record in read_metrics(tmp_path / "run") if "eval/new/loss" in record}
    assert sorted(found) == [2, 4]
    assert {"eval/new/text", "eval/new/regression", "eval/vqav2/overall"} <= set(found[2])
    assert found[4]["eval/new/text"] < found[2]["eval/new/text"]
    report = (tmp_path / "run/report.html").read_text()
    assert "Evaluation: vqav2" in report
    assert "Evaluation: new" in report
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit()] == ["4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.train.stepz=3"], r"--config.train.stepz is not a field .* did you mean --config.train.steps\?"),
        (
            ["--config.nothing.like.it=3"],
            "the top-level fields are chips, data, dpo, evaluation, instruct, model, pretrain",
        ),
        (["--config.train.steps=many"], "invalid literal"),
        (["--config.train.steps=0"], "config.train.steps must be an integer from 1 to"),
        (["--config.train.optimizer.warmup_steps=0.2"], "invalid literal for int"),
        (["--config.pretrain.regression_coefficient=1"], r"did you mean --config\.pretrain\.regression_weight"),
        (["--config.data.sets[0].path=nowhere"], "nowhere"),
        (["--config.data.sets[7].path=nowhere"], r"sets\[7\].path is not a field"),
        (["--config.tokenizer=nowhere.model"], "nowhere.model"),
        (["--config.train.mesh.data=3"], "does not cover 8 devices"),
        (["--config.stage=pretrane"], "config.stage must be one of"),
        (["--config.evaluation.batches=0"], "config.evaluation.batches must be an integer from 1 to"),
        (["--wrokdir=x"], "did you mean --workdir"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_invalid_arguments_are_one_clear_error(config_file, tmp_path, words, message):
    with pytest.raises(UserError, match=f"(?is){message}"):
        train.main([f"--config={config_file}", f"--workdir={tmp_path}", *words])


def test_a_missing_config_file(tmp_path):
    with pytest.raises(UserError, match=r"did you mean configs/tiny.py\?"):
        train.main(["--config=configs/tinny.py", f"--workdir={tmp_path}"])
    with pytest.raises(UserError, match="required: --config"):
        train.main([f"--workdir={tmp_path}"])


def test_help_says_how_to_set_a_field(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    out = capsys.readouterr().out
    assert "--config.FIELD=VALUE" in out
    assert "train.optimizer.learning_rate" in out


# A run of two steps, written before the config fields were renamed, and the losses of its next two steps. Their rows
# are packed by today's rule (`data/loader/packing.py`); the rule of that time gave 7.1160 and 6.7795.
OLD_RUN = Path(__file__).parents[1] / "data" / "run_before_renames.tar.gz"
OLD_LOSSES = {3: 7.098691940307617, 4: 6.83853816986084}
OLD_RUN_CONFIG = """
from configs import common

def get_config():
    config = common.base("emu_tiny", steps=4, batch_size=8, length=48, max_images=3)
    config.model.vision.update(dict(image_size=8, patch_size=4, width=8, num_layers=1, num_heads=2, mlp_dim=8))
    config.model.causal_former.update(dict(width=8, num_heads=2, head_dim=4, mlp_dim=8))
    config.model.decoder.update(dict(width=8, num_layers=1, num_heads=2, num_kv_heads=2, mlp_dim=8))
    config.data.batch.image_size = 8
    config.data.pool = 16
    config.data.sets = common.sets(dict(path="{pairs}", name="pairs"))
    config.tokenizer = "{tokenizer}"
    config.pretrain.regression_weight = 0.5
    config.train.optimizer.schedule = "wsd"
    config.train.optimizer.cooldown_fraction = 0.25
    config.train.optimizer.final_fraction = 0.1
    config.train.optimizer.learning_rate = 1e-2
    config.train.optimizer.warmup_fraction = 0.25
    config.train.checkpoint.every_steps = 2
    config.train.log_every = 1
    config.train.mesh.fsdp = 1
    config.train.mesh.data = -1
    return config
"""


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_a_config_from_before_the_renames_has_the_same_values(old_run, tmp_path):
    (tmp_path / "old.py").write_text(OLD_RUN_CONFIG)
    saved = from_config_dict(EmuRunConfig, json.loads((old_run / "config.json").read_text()))
    now = from_config_dict(EmuRunConfig, read_config(str(tmp_path / "old.py")))
    assert saved.train == now.train
    assert saved.pretrain == now.pretrain
    decoder = dataclasses.replace(now.model.decoder, vocab_size=304)  # from the tokenizer
    assert saved.model == dataclasses.replace(now.model, decoder=decoder)


@pytest.mark.e2e
def test_a_run_from_before_the_renames_loads_and_resumes(old_run, tmp_path):
    emu = emu_jax.load(old_run)
    assert emu.config.decoder.vocab_size == 304
    saved = load_params(old_run / "checkpoints" / "2")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(emu.params), saved)

    pairs = make_set(tmp_path, "pairs", 0)
    text = OLD_RUN_CONFIG.replace("{pairs}", str(pairs)).replace("{tokenizer}", str(old_run / "tokenizer.model"))
    (tmp_path / "old.py").write_text(text)
    train.main([f"--config={tmp_path / 'old.py'}", f"--workdir={old_run}"])
    found = losses(old_run)
    assert sorted(found) == [1, 2, 3, 4]
    for step, loss in OLD_LOSSES.items():
        np.testing.assert_allclose(found[step], loss, rtol=1e-4)
