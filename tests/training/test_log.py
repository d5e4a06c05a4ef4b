"""Progress lines, metrics.jsonl, and the copy to Weights & Biases."""

import json
import sys
import types

import pytest

from emu_jax.errors import UserError
from emu_jax.training.log import METRICS_FILE, Console, MetricsLog, progress_lines, read_metrics
from emu_jax.training.weights_and_biases import WandbRun

METRICS = {
    "loss": 1.25, "loss/text": 0.75, "loss/regression": 0.5, "loss/text/laion": 0.5, "loss/text/mmc4": float("nan"),
    "loss/regression/laion": 0.25, "gradient_norm": 1.3, "gradient_norm/decoder": 1.2,
    "gradient_norm/vision_encoder": 0.5,
    "update_norm/decoder": 0.01, "visual_embedding_variance": 0.52, "visual_embedding_rank": 17.0,
    "steps_per_second": 12.3, "tokens_per_second": 41200.0, "images_per_second": 96.0, "mfu": 0.412, "data_wait": 0.02,
    "fill/tokens": 0.971, "fill/images": 0.99, "device_memory_gb": 11.26, "seconds_left": 3750.0, "skipped": 0.0,
}  # fmt: skip


def test_progress_lines():
    assert progress_lines("pretrain", 1200, 4000, METRICS) == [
        "pretrain 1200/4000 30%  loss 1.25  text 0.75  regression 0.5  12.3 steps/s  41.2k tokens/s  96 images/s  "
        "filled 97%/99%  MFU 41.2%  data wait 2%  device 11.3 GB  1h02m left",
        "  text: laion 0.5  regression: laion 0.25",
        "  gradient 1.3: decoder 1.2, vision_encoder 0.5  update: decoder 0.01",
        "  embeddings: variance 0.52, rank 17",
    ]
    assert progress_lines("vae", 4, 4, {"loss": 2.0, "seconds_left": 0.0}) == ["vae 4/4 100%  loss 2"]


def test_progress_lines_are_updated_in_place_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda fileno: types.SimpleNamespace(columns=40))
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2, raising=False)
    with Console("pretrain", steps=4000) as console:
        console.progress(1, METRICS)
        console.progress(2, METRICS)
        console.message("saved")
    out = capsys.readouterr().err
    first, second = out.split("\r")[1:]
    assert first.count("\n") == 3
    assert second.startswith("\x1b[3A\x1b[2Kpretrain 2/4000")  # up three lines
    assert all(len(line.rpartition("\x1b[2K")[2]) <= 39 for line in second.split("\n"))
    assert out.endswith("\npretrain: saved\n")


def test_records_past_the_resumed_step_and_a_truncated_line_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step), "rate": float("inf")})
    log.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 4, "lo')
    log = MetricsLog(tmp_path, step=2)
    log.warn(2, "careful")
    log.close()
    records = [{name: value for name, value in r.items() if name != "time"} for r in read_metrics(tmp_path)]
    assert records == [
        {"step": 1, "loss": 1.0, "rate": None},
        {"step": 2, "loss": 2.0, "rate": None},
        {"step": 2, "warning": "careful"},
    ]
    assert all(json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines())


def test_a_workdir_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        MetricsLog(tmp_path / "run", step=0)


def test_wandb_receives_a_copy(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, metrics, *, step):
            calls.append((step, metrics))

        def alert(self, *, title, text):
            calls.append(text)

        def finish(self):
            calls.append("finished")

    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace(name="wandb")
    fake.Error = type("Error", (Exception,), {})
    started = []
    fake.init = lambda **settings: started.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):  # a run, and its continuation
        log = MetricsLog(tmp_path, step=0, sinks=[WandbRun(tmp_path, project="emu", config={"steps": 3})])
        log.write(1, {"loss": 2.0, "loss/text/mmc4": float("nan")})
        log.warn(1, "careful")
        log.close()
    assert calls[:3] == [(1, {"loss": 2.0}), "step 1: careful", "finished"]
    assert started[0]["id"] == started[1]["id"]
    assert (started[0]["project"], started[0]["resume"], started[0]["config"]) == ("emu", "allow", {"steps": 3})


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install"):
        WandbRun(tmp_path, project="emu", config={})
