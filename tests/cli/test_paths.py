"""Paths of all commands: URLs are refused or streamed, `~` is expanded, and no folder gs: or ~ is created."""

import shlex
from pathlib import Path

import pytest

from emu_jax.__main__ import main
from emu_jax.cli.config_file import read_config
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from tests.data.conftest import color_image, write_jsonl

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT}/configs/tiny.py"

# Each command with one path that is a URL, which it cannot stream.
LOCAL = [
    "prepare-data --source=jsonl --input a.jsonl --output={}",
    "prepare-data --source=jsonl --input {} --output=out",
    "prepare-data --source=jsonl --input a.jsonl --output=out --media={}",
    "prepare-decoder-data --checkpoint={} --decoder=d --sets s --output=out",
    "prepare-decoder-data --checkpoint=c --decoder={} --sets s --output=out",
    "prepare-decoder-data --checkpoint=c --decoder=d --sets s {} --output=out",
    "prepare-decoder-data --checkpoint=c --decoder=d --sets s --output={}",
    "import-torch {} out",
    "import-torch a.safetensors {}",
    "import-torch a.safetensors out --config={}",
    "import-torch a.safetensors out --tokenizer={}",
    "export-torch {} out",
    "export-torch model {}",
    "evaluate --checkpoint={} --task=vqav2 --data=d --output=out",
    "evaluate --checkpoint=c --task=vqav2 --data={} --output=out",
    "evaluate --checkpoint=c --task=vqav2 --data=d --output={}",
    "evaluate --predictions={} --task=vqav2 --data=d --output=out",
    "evaluate --compare out {}",
    "inspect-data TINY --output={}",
    "compile TINY --topology=v5p:2x2x1 --json={}",
    "compile TINY --topology=v5p:2x2x1 --dump-hlo={}",
    "train TINY --workdir=run --config.evaluation.data={}",
    "generate --checkpoint={} words",
    "generate --checkpoint=c --tokenizer={} words",
    "generate --checkpoint=c --output={}/a.png words",
    "chat --checkpoint={}",
    "serve --checkpoint={}",
    "demo --workdir={}",
    "scaling plan --preset=cpu --study={}",
    "scaling fit --points={} --json=out.json",
]


@pytest.mark.parametrize("url", ["gs://bucket/folder", "s3://bucket/folder"])
@pytest.mark.parametrize("command", LOCAL)
def test_urls_are_refused_where_the_path_must_be_local(command, url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}")
    code = main(shlex.split(command.replace("TINY", TINY).format(url)))
    assert code == 2
    error = capsys.readouterr().err
    assert f"{url}" in error
    assert "is not a local path. Mount the bucket" in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("command", ["train TINY --workdir={}", "doctor --workdir={}"])
@pytest.mark.parametrize("url", ["http://host/run", "gs:/bucket/run", "gs:///run"])
def test_only_urls_of_object_stores_are_workdirs(command, url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command.replace("TINY", TINY).format(url))) == 2
    assert "is neither a local path nor a URL such as gs://BUCKET/FOLDER" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_home_folders_are_expanded(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    pair = {"layout": "pair", "segments": [{"image": "a.png"}, {"text": "a cat"}]}
    write_jsonl(home / "in", "raw", [pair], {"a.png": color_image(0)})
    options = ["--source=jsonl", "--image-size=8", "--min-side=1"]
    assert main(["prepare-data", *options, "--input", "~/in/raw.jsonl", "--output=~/out"]) == 0
    assert len(PreparedSet(home / "out")) == 1
    assert not (tmp_path / "~").exists()
    assert main(["export-torch", "~/absent", "~/torch"]) == 2
    assert f"{home}/absent is not a model directory" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"There is no model at {home}/absent"):
        load("~/absent")
    overrides = ["--config.tokenizer=~/t.model", "--config.train.warm_start=gs://b/run/checkpoints/3"]
    config = read_config(f"{ROOT}/configs/tiny.py", [*overrides, "--config.data.sets[0].path=~/set"])
    assert (config.tokenizer, config.data.sets[0].path) == (f"{home}/t.model", f"{home}/set")
    assert config.train.warm_start == "gs://b/run/checkpoints/3"


def test_an_unknown_user_has_no_home_folder(capsys):
    assert main(["export-torch", "~nobody-of-this-name/model", "out"]) == 2
    assert "There is no home folder ~nobody-of-this-name" in capsys.readouterr().err
