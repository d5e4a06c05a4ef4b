"""The local mirror of a remote working directory. The remote is a local folder here."""

import pytest

from emu_jax.errors import UserError
from emu_jax.io.mirror import Mirror, is_remote
from emu_jax.training.log import METRICS_FILE, MetricsLog, read_metrics


def test_paths_with_a_scheme_are_remote():
    assert is_remote("gs://bucket/run")
    assert not is_remote("/runs/demo")


def test_logs_are_copied_and_continued_on_another_machine(tmp_path):
    remote = tmp_path / "bucket" / "run"
    mirror = Mirror(str(remote), fetch=[METRICS_FILE], local=tmp_path / "one", every_seconds=0.0)
    log = MetricsLog(mirror.local, step=0, sinks=[mirror])
    log.write(1, {"loss": 3.0})
    assert [record["step"] for record in read_metrics(remote)] == [1]
    log.write(2, {"loss": 2.0})
    log.close()
    assert any(path.is_file() for path in (remote / "tensorboard").iterdir())

    other = Mirror(str(remote), fetch=[METRICS_FILE], local=tmp_path / "two", every_seconds=3600.0)
    log = MetricsLog(other.local, step=1, sinks=[other])  # resumed from step 1: later records are dropped
    log.write(2, {"loss": 1.5})
    assert read_metrics(remote)[-1]["loss"] == 2.0  # not yet
    log.warn(2, "warning")
    assert [record.get("loss") for record in read_metrics(remote)] == [3.0, 1.5, None]
    log.close()


def test_only_changed_files_are_copied(tmp_path, monkeypatch):
    mirror = Mirror(str(tmp_path / "bucket"), local=tmp_path / "local")
    for name in ("a", "b"):
        (mirror.local / name).write_text(name)
    mirror.push()
    (tmp_path / "bucket" / "a").write_text("untouched")
    (mirror.local / "b").write_text("longer")
    mirror.push()
    assert (tmp_path / "bucket" / "a").read_text() == "untouched"
    assert (tmp_path / "bucket" / "b").read_text() == "longer"


def test_a_failing_object_store_does_not_end_a_run(tmp_path):
    (tmp_path / "bucket").write_text("a file instead of a folder")
    mirror = Mirror(str(tmp_path / "bucket"), local=tmp_path / "local")
    (mirror.local / "metrics.jsonl").write_text("{}\n")
    mirror.push()
    (tmp_path / "bucket").unlink()
    mirror.push()
    assert (tmp_path / "bucket" / "metrics.jsonl").read_text() == "{}\n"


def test_a_missing_package_for_object_stores_is_named(tmp_path, monkeypatch):
    def fail(self):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("etils.epath.gpath._GPath.exists", fail)
    with pytest.raises(UserError, match="pip install gcsfs"):
        Mirror("gs://bucket/run", fetch=["metrics.jsonl"], local=tmp_path)
