"""A chat with a model in this process: the answers of the server, cached turns, no compilation, stops."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from emu_jax.chat.session import Session, question_parts
from emu_jax.errors import UserError
from emu_jax.serving.local import LocalClient
from tests.serving.conftest import png, solid_image, wait_until

OPTIONS = {"temperature": 0.0, "max_tokens": 4, "seed": 0, "num_inference_steps": 2}


@pytest.fixture
def session(local: LocalClient, tmp_path: Path) -> Session:
    (tmp_path / "a.png").write_bytes(png(solid_image(200, 0, 0)))
    return Session(local, tmp_path, dict(OPTIONS))


def metric(local: LocalClient, name: str) -> float:
    return local.engine.metrics.registry.get_sample_value(f"emu_{name}_total") or 0.0


def test_eight_turns_compile_nothing_and_reuse_the_cache(session: Session, local: LocalClient) -> None:
    """A turn computes at most a chunk of the turns before it; one turn is a beam search."""
    compiled = metric(local, "compilations")
    chunk = local.engine.config.prefill_chunk
    lengths = []
    for turn in range(8):
        before = metric(local, "prefilled_tokens"), metric(local, "reused_tokens")
        question = question_parts("a")
        assert [*session.ask(question, max_tokens=1, **({"num_beams": 2} if turn == 5 else {}))]
        prefilled, reused = metric(local, "prefilled_tokens") - before[0], metric(local, "reused_tokens") - before[1]
        if lengths and turn != 5:
            assert prefilled <= prefilled + reused - lengths[-1] + chunk
        lengths.append(prefilled + reused)
    assert lengths == sorted(lengths)
    assert reused > 0
    assert len(session.messages) == 16
    assert metric(local, "compilations") == compiled


def test_images_of_an_answer_are_files(session: Session, tmp_path: Path) -> None:
    first = [*session.draw("a red circle")]
    second = [*session.create("make it green", [tmp_path / "a.png"])]
    third = [*session.create("", [tmp_path / "a.png", tmp_path / "a.png"])]
    assert [*first, *second, *third] == [tmp_path / f"emu-{i}.png" for i in (1, 2, 3)]
    session.save(tmp_path / "chat.md")
    assert (tmp_path / "chat.md").read_text().count("![](chat-") == 6


@pytest.mark.parametrize("stop_first", [True, False])
def test_a_stopped_answer_frees_its_slot(session: Session, local: LocalClient, stop_first: bool) -> None:
    """By `stop` from another thread, or by closing the iterator; the conversation stays as it was."""
    answer = session.ask(question_parts("a dog"), max_tokens=100, min_tokens=100, temperature=2.0)
    next(answer)
    if stop_first:
        threading.Thread(target=session.stop).start()
        assert len([*itertools.islice(answer, 100)]) < 90
    else:
        answer.close()
    assert wait_until(lambda: local.engine.in_flight == 0, seconds=5) < 1
    assert session.messages == []
    assert session.stopped is stop_first


def test_refused_requests_are_user_errors(session: Session, tmp_path: Path) -> None:
    for wrong in ({"max_tokens": 1000}, {"temperature": -1.0}, {"num_beams": 3}):
        with pytest.raises(UserError):
            [*session.ask(question_parts("a dog"), **wrong)]
    with pytest.raises(UserError, match=r"none\.png"):
        [*session.create("a", [tmp_path / "none.png"])]
    assert session.messages == []


def test_the_positions_of_files_in_a_question(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file in files:
        file.write_bytes(b"data")
    kinds = lambda *words, **options: [part["type"] for part in question_parts(*words, **options)]
    assert kinds("x <image> y <image>", files) == ["image_url", "text", "image_url", "text", "image_url"]
    assert kinds(f"x <{files[0]}>") == ["text", "image_url"]
    assert kinds(f"x <{files[0]}>", named_files=False) == ["text"]
