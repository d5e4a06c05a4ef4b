"""The complete demo at its small scale, as `make demo FAST=1` runs it, and its second start."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCORES = (
    "caption_exact",
    "vqa_accuracy",
    "text_to_image_color_and_shape",
    "classifier_accuracy",
    "in_context_accuracy",
    "video_direction_accuracy",
    "visual_embedding_variance",
)
COMMANDS = ["prepare-data"] * 8 + ["train"] * 3 + ["prepare-decoder-data", "train"]


def demo(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "emu_jax", "demo", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)


@pytest.mark.e2e
def test_the_fast_demo_completes_and_has_nothing_to_do_at_its_second_start(tmp_path, user_environment):
    workdir = tmp_path / "demo"
    first = demo(user_environment, "--fast", f"--workdir={workdir}")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert re.findall(r"^\$ python -m emu_jax (\S+)", first.stdout, re.MULTILINE) == COMMANDS
    metrics = json.loads((workdir / "metrics.json").read_text())
    for name in SCORES:
        assert metrics[name] >= 0, name
        assert metrics["num_scenes"][name] > 0, name
    assert set(metrics["caption_attributes"]) == {"shape", "color", "size", "location", "background"}
    assert metrics["classifier_accuracy"] >= 0.99
    assert set(SCORES[:3]) <= set(metrics["untrained"])
    assert metrics["seconds_total"] > 0
    assert metrics["peak_rss_gb"] < 4
    page = (workdir / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (workdir / "visual_decoder" / "unet" / "config.json").is_file()

    second = demo(user_environment, "--fast", f"--workdir={workdir}")
    assert second.returncode == 0
    assert second.stdout.count("already done") == 9
    other = demo(user_environment, f"--workdir={workdir}")
    assert other.returncode == 2
    assert "other settings" in other.stderr
    assert len(other.stderr.splitlines()) == 1
