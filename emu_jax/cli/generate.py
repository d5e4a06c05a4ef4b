"""Writes text, pictures, or both in turn after a prompt of text, photographs and videos.

The prompt is what stands on the command line, in its order; a word that is a file, or ends like a picture or a video,
is one. In --prompt files stand in angle brackets:

    python -m emu_jax generate --checkpoint runs/demo photo.jpg "What is this?"
    python -m emu_jax generate --checkpoint runs/demo --prompt "<photo.jpg> What is this?"
    python -m emu_jax generate --checkpoint runs/demo a.png "There are two dogs." b.png --num-beams 5
    python -m emu_jax generate --checkpoint runs/demo video.mp4 "Which way does it go?" --chat
    python -m emu_jax generate --checkpoint runs/demo "a red circle" --output circle.png --seed 7
    python -m emu_jax generate --checkpoint runs/demo a.png b.png --output image --num-images 4
    python -m emu_jax generate --checkpoint runs/demo a.png --autoencode --output again.png
    python -m emu_jax generate --checkpoint runs/demo "Once upon a time" --output story --max-images 3

Text goes to stdout. Pictures go to FILE.png, or with `--output image` to a new emu-N.png here; several of them to
one sheet. Where a safety checker's weights lie beside the visual decoder's, it screens every picture: one that it flags
comes out black. Bad input is one line on stderr and exit code 2, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.data.document import Role
from emu_jax.data.images import DecodeError, decode
from emu_jax.data.media_paths import is_video, named_file
from emu_jax.data.tokenizer import BOI, EOI, IMAGE_TOKEN
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.generation.chat import SYSTEM_IMAGE, SYSTEM_VIDEO, Turn, chat_prompt
from emu_jax.generation.mixed import OpenImage
from emu_jax.generation.options import ImageOptions
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.pixels import SafetyCheck, contact_sheet
from emu_jax.generation.prompt import Part
from emu_jax.generation.sampling import TextOptions

TEXT, IMAGE, STORY = "text", "image", "story"
SYSTEMS = {"none": "", "image": SYSTEM_IMAGE, "video": SYSTEM_VIDEO}
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def main(argv: list[str]) -> None:
    arguments = parser().parse_intermixed_args(argv)
    parts = prompt_parts(arguments)
    output = output_file(arguments.output)
    text, picture = options(TextOptions, arguments), options(ImageOptions, arguments)
    emu = load(arguments.checkpoint, tokenizer=arguments.tokenizer, dtype=arguments.dtype)
    if arguments.chat:
        parts = chat_prompt([Turn(Role.USER, tuple(parts))], tokenizer=emu.tokenizer, system=SYSTEMS[arguments.system])
    special = {"special_tokens": arguments.special_tokens}
    if arguments.output == TEXT:
        print(str(emu.generate_text(parts, **special, **dataclasses.asdict(text))).strip())
        return
    screen = Screen(None if arguments.no_safety else emu.safety_checker)
    if arguments.output == STORY:
        _story(emu, parts, arguments, text, picture, screen)
    else:
        pictures = emu.generate_image(
            parts,
            num_images=arguments.num_images,
            autoencode=arguments.autoencode,
            safety=screen.safety,
            **special,
            **dataclasses.asdict(picture),
        )
        sheet = pictures[0] if len(pictures) == 1 else contact_sheet(pictures)
        path = output or free_name("emu")
        save_image(sheet, path)
        print(f"{path}: {len(pictures)} picture{'s' * (len(pictures) > 1)} of {pictures[0].width} x "
              f"{pictures[0].height}, {picture.steps} steps of {picture.sampler}, seed {picture.seed}")  # fmt: skip
    screen.report()


class Screen:
    """A safety checker that counts what it flags; `safety` is None where there is no checker."""

    def __init__(self, checker: SafetyCheck | None) -> None:
        self.flagged = 0
        self._checker = checker
        self.safety: SafetyCheck | None = None if checker is None else self._check

    def _check(self, pictures: Sequence[PIL.Image.Image]) -> Sequence[bool]:
        assert self._checker is not None
        found = self._checker(pictures)
        self.flagged += sum(found)
        return found

    def report(self) -> None:
        """One line where a picture was flagged."""
        if self.flagged:
            print(f"flagged by the safety checker and left black: {self.flagged}; try another --seed or prompt")


def parser() -> ArgumentParser:
    parser = ArgumentParser(__name__, __doc__)
    add_model_arguments(parser)
    parser.add_argument("parts", nargs="*", metavar="TEXT|FILE", help="the prompt, in order")
    parser.add_argument("--prompt", help="the prompt as one text, with <files> in angle brackets")
    parser.add_argument(
        "--output", default=TEXT, metavar="text|image|story|FILE.png", help="what to make (default: text)"
    )
    parser.add_argument("--chat", action="store_true", help="asks as a user: [USER]: ... [ASSISTANT]:")
    parser.add_argument("--system", choices=sorted(SYSTEMS), default="none", help="with --chat, a released message")
    parser.add_argument("--special-tokens", action="store_true", help="[IMG], </s> ... in the text are special tokens")
    add_text_arguments(parser)
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--autoencode",
        action="store_true",
        help="paints what the encoder sees in the prompt's one image, predicts nothing",
    )
    pictures.add_argument(
        "--no-safety", action="store_true", help="shows pictures unscreened although there is a safety checker"
    )
    pictures.add_argument("--num-images", type=int, default=1, help="pictures of one prompt")
    pictures.add_argument("--sampler", default="pndm", help="pndm, ddim or dpm-solver++ (default: pndm)")
    pictures.add_argument("--steps", type=int, default=50, help="of the sampler (default: 50)")
    pictures.add_argument("--guidance-scale", type=float, default=7.5, help="default: 7.5")
    pictures.add_argument("--height", type=int, help="in pixels (default: as the decoder was trained)")
    pictures.add_argument("--width", type=int)
    story = parser.add_argument_group("stories")
    story.add_argument("--max-images", type=int, default=1, help="at most so many pictures (default: 1)")
    story.add_argument(
        "--open-image",
        choices=[one.value for one in OpenImage],
        default=OpenImage.ALTERNATE.value,
        help="when a picture begins: as the model says, with one first, or after each text (default)",
    )
    return parser


def add_model_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a model directory, or a run's workdir")
    parser.add_argument("--tokenizer", metavar="FILE", help="SentencePiece model (default: DIR/tokenizer.model)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="to compute in (default: as saved)")


def add_text_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("text")
    defaults = TextOptions()
    for name, kind, doc in (
        ("max_new_tokens", int, "at most so many tokens"),
        ("num_beams", int, "beam search with so many; 1: greedy, or draws"),
        ("length_penalty", float, "of beam search; the release takes 0, and 1 for videos"),
        ("min_length", int, "no end before so many tokens"),
        ("repetition_penalty", float, "above 1: words that came are less likely"),
        ("no_repeat_ngram_size", int, "no n-gram twice; 0: no such rule"),
        ("temperature", float, "above 0: tokens are drawn"),
        ("top_k", int, "draws among the k likeliest; 0: all"),
        ("top_p", float, "draws among the likeliest that have p together"),
        ("seed", int, "of draws and of pictures' noise"),
    ):
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=kind, default=default, help=f"{doc} (default: {default})")


def prompt_parts(arguments: Any) -> list[Part]:
    """The prompt of the command line; files must exist, and text holds no image tokens."""
    if arguments.prompt is not None and arguments.parts:
        raise UserError("Give the prompt as words or with --prompt, not both.")
    if arguments.prompt is not None:
        parts = parse_prompt(arguments.prompt)
    else:
        parts = [named_file(part) or part for part in arguments.parts]
    if not parts:
        raise UserError("There is no prompt; give text and files, as in: photo.jpg 'What is this?'")
    check_parts(parts, special_tokens=arguments.special_tokens)
    if arguments.autoencode and (len(parts) != 1 or isinstance(parts[0], str) or arguments.output in (TEXT, STORY)):
        raise UserError(
            "--autoencode takes one image and --output image or a file: photo.jpg --autoencode --output image"
        )
    return parts


def parse_prompt(prompt: str) -> list[Part]:
    """Text with files in angle brackets: `"<a.jpg> What is this?"` -> `[Path("a.jpg"), " What is this?"]`.

    What stands in brackets with spaces around it or in it, and is no file, is text: "2 < 3 > 1".
    """
    parts: list[Part] = []
    for i, piece in enumerate(re.split(r"<([^<>\n]+)>", prompt)):
        if i % 2 == 0:
            if piece:
                parts.append(piece)
        elif piece in (IMAGE_TOKEN.strip("<>"), "s", "/s", "unk") or (" " in piece and not named_file(piece)):
            parts.append(f"<{piece}>")
        else:
            parts.append(Path(piece))
    return parts


def check_parts(parts: list[Part], *, special_tokens: bool = False) -> None:
    """Finds mistakes before the model is read, which may take minutes.

    Raises:
      UserError: a file that is missing or no picture, or an image token in a text.
    """
    for part in parts:
        if isinstance(part, str):
            _check_text(part, special_tokens=special_tokens)
        elif isinstance(part, Path) and not part.is_file():
            raise UserError(f"There is no file {part}.")
        elif isinstance(part, Path) and not is_video(part):
            try:
                decode(part)
            except DecodeError as error:
                raise UserError(f"{part}: {error}.") from None


def _check_text(text: str, *, special_tokens: bool) -> None:
    refused = (IMAGE_TOKEN,) if special_tokens else (IMAGE_TOKEN, BOI, EOI)
    for token in refused:
        if token in text:
            how = "give the file itself" if token == IMAGE_TOKEN else "give the file itself, or --special-tokens"
            raise UserError(f"The text holds the image token {token}; to show an image, {how}.")


def options(cls: Any, arguments: Any) -> Any:
    """The command line's values of a dataclass of options."""
    return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)
                  if hasattr(arguments, field.name)})  # fmt: skip


def output_file(output: str) -> Path | None:
    """The file named by --output; None for one of its words.

    Raises:
      UserError: it is neither, or its folder is not there.
    """
    if output in (TEXT, IMAGE, STORY):
        return None
    path = Path(output)
    if path.suffix.lower() not in _PICTURE_SUFFIXES:
        raise UserError(f"--output is {TEXT}, {IMAGE}, {STORY} or a file ending in .png or .jpg, not {output!r}.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} into.")
    return path


def free_name(stem: str) -> Path:
    """`stem`-1.png, -2.png ...: the first that is not there."""
    number = 1
    while Path(f"{stem}-{number}.png").exists():
        number += 1
    return Path(f"{stem}-{number}.png")


def save_image(picture: PIL.Image.Image, path: Path) -> None:
    """Writes it whole, or not at all."""
    encoded = io.BytesIO()
    picture.save(encoded, PIL.Image.registered_extensions()[path.suffix.lower()])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(encoded.getvalue())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}).") from None


def _story(
    emu: EmuPipeline, parts: list[Part], arguments: Any, text: TextOptions, picture: ImageOptions, screen: Screen
) -> None:
    emu.visual_decoder  # noqa: B018  its errors before the work
    for part in emu.generate(
        parts,
        max_images=arguments.max_images,
        open_image=arguments.open_image,
        pictures=True,
        picture=picture,
        special_tokens=arguments.special_tokens,
        safety=screen.safety,
        **dataclasses.asdict(text),
    ):
        if isinstance(part, PIL.Image.Image):
            path = free_name("emu")
            save_image(part, path)
            print(f"<{path}>")
        else:
            print(part)
