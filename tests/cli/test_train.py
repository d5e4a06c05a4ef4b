"""`train` as a user types it, on sets that `prepare-data` made, with the true loader."""

import json
import signal
import threading
import time

import jax
import numpy as np
import pytest

from emu_jax.checkpoints.params import load_params
from emu_jax.cli import train
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from emu_jax.training.log import read_metrics
from tests.data.conftest import make_set

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
    config.train.optimizer.warmup_steps = 0.0
    config.train.checkpoint.every_steps = 4
    config.train.log_every = 1
    config.train.mesh.fsdp = 1  # data parallel alone compiles quickest
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
def whole(config_file, tmp_path_factory):
    """A run of eight steps at once."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train.main([f"--config={config_file}", f"--workdir={workdir}"])
    return workdir


def losses(workdir):
    return {record["step"]: record["loss"] for record in read_metrics(workdir) if "loss" in record}


@pytest.mark.e2e
def test_a_run_explains_itself(whole):
    assert json.loads((whole / "config.json").read_text())["train"]["steps"] == 8
    assert (whole / "tokenizer.model").is_file()
    assert "<html" in (whole / "report.html").read_text()
    record = read_metrics(whole)[-1]
    wanted = {"loss/text/pairs", "loss/text/pages", "loss/regression/pairs", "fill/tokens", "model_tflops_per_second"}
    assert wanted | {"visual_embedding_variance", "tokens_per_second", "images_per_second"} <= set(record)
    assert 0.5 < record["fill/tokens"] <= 1.0
    assert "mfu" not in record  # a CPU has no known peak


@pytest.mark.e2e
def test_stopped_and_gone_on_with_it_is_the_same_run_bit_for_bit(whole, config_file, tmp_path):
    command = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]

    def interrupt():
        while not losses(tmp_path / "run"):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)

    # A stop between two checkpoints, at a step that nobody chose.
    threading.Thread(target=interrupt, daemon=True).start()
    train.main(command)
    train.main(command)
    assert losses(tmp_path / "run") == losses(whole)
    one, other = (load_params(path / "checkpoints" / "8") for path in (tmp_path / "run", whole))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    states = [(p / "checkpoints/8/data/process_0-of-1.json").read_text() for p in (tmp_path / "run", whole)]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.train.stepz=3"], r"--config.train.stepz is not a field .* did you mean --config.train.steps\?"),
        (["--config.nothing.like.it=3"], "the groups of fields are chips, data, instruct, model, pretrain, stage"),
        (["--config.train.steps=many"], "invalid literal"),
        (["--config.train.steps=0"], "train.steps must be at least 1"),
        (["--config.data.sets[0].path=nowhere"], "nowhere"),
        (["--config.data.sets[7].path=nowhere"], r"sets\[7\].path is not a field"),
        (["--config.tokenizer=nowhere.model"], "nowhere.model"),
        (["--config.train.mesh.data=3"], "does not cover 8 devices"),
        (["--config.stage=pretrane"], "config.stage must be one of"),
        (["--wrokdir=x"], "did you mean: workdir"),
        (["extra"], "'extra' is not understood"),
    ],
)
def test_mistakes_are_one_line(config_file, tmp_path, words, message):
    with pytest.raises(UserError, match=f"(?is){message}"):
        train.main([f"--config={config_file}", f"--workdir={tmp_path}", *words])


def test_a_config_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"did you mean configs/tiny.py\?"):
        train.main(["--config=configs/tinny.py", f"--workdir={tmp_path}"])
    with pytest.raises(UserError, match="--config is missing"):
        train.main([f"--workdir={tmp_path}"])
