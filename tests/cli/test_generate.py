"""`generate` and `chat` as typed: files and text in any order, text and pictures out, one line for each mistake."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from emu_jax.__main__ import main
from emu_jax.cli import chat, generate
from emu_jax.data.document import Role
from emu_jax.errors import UserError
from emu_jax.generation.options import ImageOptions


class Recorder:
    """Stands for a loaded Emu: keeps what it was asked."""

    tokenizer = None

    def __init__(self) -> None:
        self.asked: list[tuple[str, list, dict]] = []

    visual_decoder = safety_checker = None

    def generate_text(self, parts: list, **options) -> str:
        self.asked.append(("text", parts, options))
        return " a red circle "

    def generate_image(self, parts: list, *, num_images: int, **options) -> list[PIL.Image.Image]:
        self.asked.append(("image", parts, options))
        return [PIL.Image.new("RGB", (8, 8), "red")] * num_images

    def generate(self, parts: list, **options) -> list:
        self.asked.append(("story", parts, options))
        return ["Once upon", PIL.Image.new("RGB", (8, 8), "red"), "the end"]


@pytest.fixture
def emu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(generate, "load", lambda *_, **__: recorder)
    monkeypatch.setattr(chat, "load", lambda *_, **__: recorder)
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("cat.png")
    return recorder


def _run(*words: str) -> int:
    return main(["generate", "--checkpoint", "DIR", *words])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["cat.png", "What is this?"], [Path("cat.png"), "What is this?"]),
        (["a", "cat.png", "b", "--seed", "1", "cat.png"], ["a", Path("cat.png"), "b", Path("cat.png")]),
        (["--prompt", "<cat.png> What is this?"], [Path("cat.png"), " What is this?"]),
        (["--prompt", "a<cat.png>b<cat.png>"], ["a", Path("cat.png"), "b", Path("cat.png")]),
        (["--prompt", "is 2 < 3 > 1 ?"], ["is 2 ", "< 3 >", " 1 ?"]),
    ],
)
def test_files_and_text_in_any_order(emu: Recorder, capsys: pytest.CaptureFixture, words: list, parts: list) -> None:
    assert _run(*words, "--num-beams", "5", "--min-length", "3") == 0
    assert capsys.readouterr().out == "a red circle\n"
    kind, asked, options = emu.asked[0]
    assert (kind, asked) == ("text", parts)
    assert options["num_beams"] == 5
    assert options["min_length"] == 3
    assert options["special_tokens"] is False


def test_a_picture(emu: Recorder, capsys: pytest.CaptureFixture) -> None:
    assert _run("a red circle", "--output", "circle.png", "--seed", "7", "--steps", "4", "--height", "64") == 0
    assert PIL.Image.open("circle.png").size == (8, 8)
    assert "circle.png" in capsys.readouterr().out
    _, _, options = emu.asked[0]
    others = {"special_tokens", "autoencode", "safety"}
    assert ImageOptions(**{k: v for k, v in options.items() if k not in others}) == ImageOptions(
        seed=7, steps=4, height=64
    )
    assert options["safety"] is None


def test_an_image_through_encoder_and_decoder(emu: Recorder) -> None:
    assert _run("cat.png", "--autoencode", "--output", "again.png") == 0
    _, parts, options = emu.asked[0]
    assert parts == [Path("cat.png")]
    assert options["autoencode"]


def test_pictures_are_screened_unless_it_is_said_not_to(emu: Recorder, capsys: pytest.CaptureFixture) -> None:
    emu.safety_checker = lambda pictures: [True] * len(pictures)
    assert _run("a red circle", "--output", "circle.png", "--num-images", "2") == 0
    assert emu.asked[-1][2]["safety"](["one", "other"]) == [True, True]
    assert "flagged" not in capsys.readouterr().out  # the recorder never asked
    for output in ("image", "story"):
        assert _run("a red circle", "--output", output, "--no-safety") == 0
        assert emu.asked[-1][2]["safety"] is None


def test_what_was_flagged_is_told(capsys: pytest.CaptureFixture) -> None:
    screen = generate.Screen(lambda pictures: [True, False, True])
    assert screen.safety([None] * 3) == [True, False, True]
    screen.report()
    assert "left black: 2" in capsys.readouterr().out


def test_several_pictures_go_to_one_new_sheet(emu: Recorder) -> None:
    assert _run("a red circle", "--output", "image", "--num-images", "3") == 0
    assert _run("a red circle", "--output", "image") == 0
    assert PIL.Image.open("emu-1.png").width > 16
    assert PIL.Image.open("emu-2.png").size == (8, 8)
    assert sorted(path.name for path in Path().iterdir()) == ["cat.png", "emu-1.png", "emu-2.png"]


def test_a_story(emu: Recorder, capsys: pytest.CaptureFixture) -> None:
    assert _run("Tell", "--output", "story", "--max-images", "2") == 0
    assert capsys.readouterr().out == "Once upon\n<emu-1.png>\nthe end\n"
    assert emu.asked[0][2]["max_images"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no prompt"),
        (["dog.png", "What is this?"], "dog.png"),
        (["--prompt", "<dog.png> What is this?"], "dog.png"),
        (["--prompt", "<photo> What is this?"], "photo"),
        (["What is <image>?"], "<image>"),
        (["--prompt", "What is <image>?"], "<image>"),
        (["[IMG] a dog"], "[IMG]"),
        (["a", "--prompt", "b"], "not both"),
        (["a", "--output", "sound"], "--output"),
        (["a", "--output", "nowhere/a.png"], "nowhere"),
        (["a", "--num-beams", "0"], "num_beams"),
        (["a", "--top-p", "0.5"], "temperature"),
        (["a", "--num-beam", "2"], "--num-beam"),
        (["a red circle", "--autoencode", "--output", "image"], "--autoencode takes one image"),
        (["cat.png", "--autoencode"], "--autoencode takes one image"),
    ],
)
def test_mistakes_are_one_line(emu: Recorder, capsys: pytest.CaptureFixture, words: list, says: str) -> None:
    assert _run(*words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert says in told.err
    assert emu.asked == []
    assert [path.name for path in Path().iterdir()] == ["cat.png"]


def test_special_tokens_must_be_asked_for(emu: Recorder) -> None:
    assert _run("[IMG]ImageContent[/IMG]", "--special-tokens") == 0
    assert emu.asked[0][2]["special_tokens"] is True
    assert _run("<image>", "--special-tokens") == 2


@pytest.mark.parametrize("kind", ["nothing", "empty", "other"])
def test_a_directory_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture, kind: str) -> None:
    folder = tmp_path / "model"
    if kind != "nothing":
        folder.mkdir()
    if kind == "other":
        (folder / "config.json").write_text('{"a": 1}')
    assert main(["generate", "--checkpoint", str(folder), "a", "--output", str(tmp_path / "a.png")]) == 2
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1
    assert "model" in told.err
    assert not (tmp_path / "a.png").exists()


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        generate.save_image(PIL.Image.new("RGB", (8, 8)), tmp_path / "missing" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        generate.save_image(PIL.Image.new("RGB", (8, 8)), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_conversation_remembers(
    emu: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lines: Iterator[str] = iter(["<cat.png> what is this?", "<dog.png>", "", "and now?", "/reset", "hello"])

    def say(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    seen = []
    monkeypatch.setattr(builtins, "input", say)
    monkeypatch.setattr(chat, "chat_prompt", lambda turns, **_: seen.append(list(turns)) or [])
    assert main(["chat", "--checkpoint", "DIR"]) == 0
    out = capsys.readouterr().out
    assert out.count("a red circle") == 3
    assert "error: There is no file dog.png." in out
    assert [len(turns) for turns in seen] == [1, 3, 1]
    assert [turn.role for turn in seen[1]] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert seen[1][1].parts == ("a red circle",)
