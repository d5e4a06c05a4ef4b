"""Apache Beam gives the same records and the same summary; without Beam there is one clear error."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from emu_jax.cli.prepare_data import main
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.prepare.beam import Runner
from emu_jax.data.prepare.cleaning import PrepareConfig
from emu_jax.data.prepare.job import prepare
from emu_jax.data.records import serialize
from emu_jax.errors import UserError
from tests.data.conftest import color_image, write_jsonl

CONFIG = PrepareConfig(source="jsonl", image_size=8, min_side=4, max_rejected=0.2)

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed (pip install -c constraints.txt -e '.[beam]')",
)


def pair(n, image=None):
    return {"layout": "pair", "segments": [{"image": f"{n if image is None else image}.png"}, {"text": f"number {n}"}]}


@pytest.fixture
def inputs(tmp_path):
    """Write files with duplicates within and across files, and with broken and dropped documents."""
    images = {f"{n}.png": color_image(n) for n in range(40)} | {"long.png": np.zeros((4, 40, 3), np.uint8)}
    files = [
        [pair(n) for n in range(20)] + [pair(3), pair(50, image="missing"), pair(51, image="long")],
        [pair(n) for n in range(10, 30)],
        [pair(n) for n in range(10)],
        [pair(n) for n in reversed(range(25, 40))],
    ]
    return [write_jsonl(tmp_path / "in", f"raw{i}", records, images) for i, records in enumerate(files)]


def records(folder):
    found = PreparedSet(folder)
    return [serialize(found[i]) for i in range(len(found))]


@needs_beam
@pytest.mark.e2e
def test_same_records_and_same_summary(inputs, tmp_path):
    here = prepare(inputs, tmp_path / "here", config=CONFIG)
    beam = prepare(inputs, tmp_path / "beam", config=CONFIG, runner=Runner("DirectRunner"))
    assert here.written == 40
    assert here.reasons["duplicate"] == {"same content as an earlier document": 1 + 10 + 10 + 5}
    assert records(tmp_path / "beam") == records(tmp_path / "here")
    assert dataclasses.replace(beam, directory=here.directory) == here
    for name in ("rejects.jsonl", "samples.html"):
        texts = [(tmp_path / which / name).read_text() for which in ("here", "beam")]
        assert texts[0].replace(">here<", ">beam<") == texts[1]


@needs_beam
@pytest.mark.e2e
def test_beam_resumes_a_preparation_without_beam(inputs, tmp_path, monkeypatch):
    import emu_jax.data.prepare.job as module

    real = module.make_part
    monkeypatch.setattr(
        module, "make_part", lambda task, config: real(task, config=config) if "raw0" in task.name else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        prepare(inputs, tmp_path / "out", config=CONFIG)
    monkeypatch.undo()
    notes = tmp_path / ".out.partial" / "part-00000.json"
    marked = json.loads(notes.read_text())
    marked["rejects"][0]["reason"] = "saved by the first run"
    notes.write_text(json.dumps(marked))
    prepare(inputs, tmp_path / "out", config=CONFIG, runner=Runner("DirectRunner"))
    assert "saved by the first run" in (tmp_path / "out" / "rejects.jsonl").read_text()


@needs_beam
@pytest.mark.e2e
def test_invalid_input_raises_the_same_error_as_without_beam(inputs, tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar at all")
    with pytest.raises(UserError, match=r"no\.tar is not a tar file"):
        prepare(
            [tmp_path / "no.tar"],
            tmp_path / "out",
            config=PrepareConfig(source="pairs"),
            runner=Runner("DirectRunner"),
        )
    with pytest.raises(UserError, match="--runner=NoRunner is not a runner of Apache Beam"):
        Runner("NoRunner")


def test_without_beam_a_clear_error(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"--runner requires Apache Beam, which is not installed: pip install"):
        main(["--source=jsonl", f"--input={inputs[0]}", f"--output={tmp_path / 'out'}", "--runner=DirectRunner"])
    assert not (tmp_path / "out").exists()
