"""Generate text, images, or text and images in turn after a prompt of text, images and videos.

The prompt is the words of the command line in their order. A word that names an image or a video is that file. In
--prompt, files are in angle brackets:

    python -m emu_jax generate --checkpoint runs/demo photo.jpg "What is this?"
    python -m emu_jax generate --checkpoint runs/demo --prompt "<photo.jpg> What is this?"
    python -m emu_jax generate --checkpoint runs/demo photo.jpg
    python -m emu_jax generate --checkpoint runs/demo a.png "There are two dogs." b.png --no-chat --num-beams 5
    python -m emu_jax generate --checkpoint runs/demo "a red circle" --output circle.png --seed 7
    python -m emu_jax generate --checkpoint runs/demo a.png b.png --output image --num-images 4
    python -m emu_jax generate --checkpoint runs/demo a.png --autoencode --output again.png
    python -m emu_jax generate --checkpoint runs/demo "Once upon a time" --output story --max-images 3

A model that was trained on chats answers a prompt that contains text; with --no-chat, or without text, it continues the
prompt. Text is printed. Images are written to FILE.png, or with `--output image` to a new file emu-N.png here; several
images become one contact sheet. If the folder of the visual decoder has a safety checker, flagged images are black.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from emu_jax.cli.arguments import ArgumentParser, at_least
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError
from emu_jax.generation.options import ImageOptions, TextOptions
from emu_jax.io.files import write_bytes
from emu_jax.io.paths import local_path

if TYPE_CHECKING:
    from emu_jax.data.tokenizer import Tokenizer
    from emu_jax.generation.pipeline import EmuPipeline
    from emu_jax.generation.pixels import SafetyCheck
    from emu_jax.generation.prompt import Part

TEXT, IMAGE, STORY = "text", "image", "story"
SYSTEMS = ("none", "image", "video")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OPEN_IMAGE = ("model", "first", "alternate")


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = parser().parse_intermixed_args(argv)
    text, image = options(TextOptions, arguments), options(ImageOptions, arguments)
    output = output_file(arguments.output)
    check_combinations(arguments)

    with heavy_imports():
        from emu_jax.cli.loading import load_emu, other_process

    parts = prompt_parts(arguments)
    emu = load_emu(arguments)
    special_tokens = {"special_tokens": arguments.special_tokens}
    if arguments.output == TEXT:
        in_chat = uses_chat(arguments, parts, emu.tokenizer)
        if in_chat:
            parts = chat_parts(parts, arguments, emu.tokenizer)
        generated = str(emu.generate_text(parts, **special_tokens, **dataclasses.asdict(text))).strip()
        if other_process():
            return
        if generated:
            print(generated)
        else:
            hint = "; with --chat it answers as in its training" if emu.tokenizer.instruct and not in_chat else ""
            print(f"note: the model generated no text{hint}", file=sys.stderr)
        return
    screen = Screen(None if arguments.no_safety else emu.safety_checker)
    if arguments.output == STORY:
        _write_story(emu, parts, arguments, text, image, screen)
    else:
        images = emu.generate_image(
            parts,
            num_images=arguments.num_images,
            autoencode=arguments.autoencode,
            safety=screen.safety,
            **special_tokens,
            **dataclasses.asdict(image),
        )
        if other_process():
            return
        path = output or free_name("emu")
        save_image(_one_image(images), path)
        count = f"{len(images)} image{'s' * (len(images) > 1)} of {images[0].width} x {images[0].height}"
        print(f"{path}: {count}, {image.steps} steps of {image.sampler}, seed {image.seed}")
    screen.report()


class Screen:
    """A safety checker that counts the images that it flags; `safety` is None without a checker."""

    def __init__(self, checker: SafetyCheck | None) -> None:
        """Wrap `checker`."""
        self.flagged = 0
        self._checker = checker
        self.safety: SafetyCheck | None = None if checker is None else self._check

    def _check(self, images: Sequence[PIL.Image.Image]) -> Sequence[bool]:
        assert self._checker is not None
        flags = self._checker(images)
        self.flagged += sum(flags)
        return flags

    def report(self) -> None:
        """Print a line if an image was flagged."""
        if self.flagged:
            print(f"flagged by the safety checker and left black: {self.flagged}; try another --seed or prompt")


def parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_model_arguments()
    parser.add_argument("words", nargs="*", metavar="TEXT|FILE", help="the prompt, in order")
    parser.add_argument("--prompt", help="the prompt as one text, with <files> in angle brackets")
    parser.add_argument(
        "--output", default=TEXT, metavar="text|image|story|FILE.png", help="result to generate (default: text)"
    )
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="ask as a user, [USER]: ... [ASSISTANT]: (default: if the model was trained on chats)",
    )
    parser.add_argument("--system", choices=SYSTEMS, default="none", help="released system message, for --chat")
    add_chat_arguments(parser)
    parser.add_argument("--prefill", default="", metavar="TEXT", help="start of the answer, for --chat; not printed")
    parser.add_argument(
        "--special-tokens", action="store_true", help="parse [IMG], </s> ... in the prompt as special tokens"
    )
    add_text_arguments(parser)
    defaults = ImageOptions()
    images = parser.add_argument_group("images")
    images.add_argument(
        "--autoencode", action="store_true", help="decode the embeddings of the prompt's one image itself"
    )
    images.add_argument("--no-safety", action="store_true", help="do not screen images, even with a safety checker")
    images.add_argument("--num-images", type=at_least(1), default=1, help="images of the prompt (default: 1)")
    images.add_argument(
        "--sampler", default=defaults.sampler, help=f"pndm, ddim or dpm-solver++ (default: {defaults.sampler})"
    )
    images.add_argument("--steps", type=int, default=defaults.steps, help=f"of the sampler (default: {defaults.steps})")
    images.add_argument(
        "--guidance-scale", type=float, default=defaults.guidance_scale, help=f"default: {defaults.guidance_scale}"
    )
    images.add_argument("--height", type=int, help="in pixels (default: as in the decoder's training)")
    images.add_argument("--width", type=int, help="in pixels (default: as in the decoder's training)")
    story = parser.add_argument_group("stories")
    story.add_argument("--max-images", type=at_least(1), default=1, help="maximum number of images (default: 1)")
    story.add_argument(
        "--open-image",
        choices=_OPEN_IMAGE,
        default="alternate",
        help="what starts an image: the model's [IMG], the start of the output, or each end of a text (default)",
    )
    return parser


def add_chat_arguments(parser: ArgumentParser) -> None:
    """Add the layout of a chat's prompt."""
    parser.add_argument(
        "--chat-style",
        choices=("training", "release"),
        default="training",
        help="layout of a chat: as in our training (default), or with the exact tokens of the released scripts",
    )


def add_text_arguments(parser: ArgumentParser) -> None:
    """Add the options of text generation."""
    group = parser.add_argument_group("text")
    defaults = TextOptions()
    for name, type_, doc in (
        ("max_new_tokens", int, "maximum number of new tokens"),
        ("num_beams", int, "beams of beam search; 1: greedy search or sampling"),
        ("length_penalty", float, "of beam search; the release uses 0, and 1 for videos"),
        ("min_length", int, "minimum number of tokens"),
        ("repetition_penalty", float, "above 1: repeated tokens are less likely"),
        ("no_repeat_ngram_size", int, "no n-gram of this size occurs twice; 0: no limit"),
        ("temperature", float, "above 0: sample the tokens"),
        ("top_k", int, "sample from the k most likely tokens; 0: all"),
        ("top_p", float, "sample from the most likely tokens with this total probability"),
        ("seed", int, "of sampled tokens and of the noise of images"),
    ):
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=type_, default=default, help=f"{doc} (default: {default})")


def options(cls: Any, arguments: argparse.Namespace) -> Any:
    """Return the dataclass `cls` with the values of the command line."""
    names = [field.name for field in dataclasses.fields(cls) if hasattr(arguments, field.name)]
    return cls(**{name: getattr(arguments, name) for name in names})


def check_combinations(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that exclude each other."""
    if arguments.prompt is not None and arguments.words:
        raise UserError("Write the prompt as words or with --prompt, not both.")
    if not arguments.prompt and not arguments.words:
        raise UserError("There is no prompt; write text and files, as in: photo.jpg 'What is this?'")
    if arguments.chat and (arguments.special_tokens or arguments.output != TEXT):
        raise UserError("--chat is for text without --special-tokens; a chat adds its special tokens itself.")
    if (arguments.system != "none" or arguments.prefill) and arguments.chat is False:
        raise UserError("--system and --prefill are for chats; remove --no-chat.")
    if arguments.prefill and (arguments.special_tokens or arguments.output != TEXT):
        raise UserError("--prefill is for a chat that answers with text, without --special-tokens.")


def prompt_parts(arguments: argparse.Namespace) -> list[Part]:
    """Return the checked prompt.

    Raises:
      UserError: a file is missing, a text contains image tokens, or --autoencode has other parts than one image.
    """
    from emu_jax.cli.prompts import check_parts, parse_prompt, words_to_parts

    parts = parse_prompt(arguments.prompt) if arguments.prompt is not None else words_to_parts(arguments.words)
    check_parts(parts, special_tokens=arguments.special_tokens)
    if arguments.autoencode and (len(parts) != 1 or isinstance(parts[0], str) or arguments.output in (TEXT, STORY)):
        raise UserError(
            "--autoencode requires one image and --output image or a file: photo.jpg --autoencode --output image"
        )
    return parts


def uses_chat(arguments: argparse.Namespace, parts: list[Part], tokenizer: Tokenizer) -> bool:
    """Return True if the prompt is a turn of a chat: by option, or by default for text to a model with chat tokens."""
    if arguments.chat is not None:
        return arguments.chat
    if arguments.system != "none" or arguments.prefill:
        return True
    has_text = any(isinstance(part, str) and part.strip() for part in parts)
    return tokenizer.instruct and has_text and not arguments.special_tokens


def chat_parts(parts: list[Part], arguments: argparse.Namespace, tokenizer: Tokenizer) -> list[Part]:
    """Return the prompt as the turn of a user, up to the start of the answer."""
    from emu_jax.data.document import Role
    from emu_jax.generation.chat import ChatStyle, Turn, chat_prompt

    note_without_chat_tokens(tokenizer)
    return chat_prompt(
        [Turn(Role.USER, tuple(parts))],
        tokenizer=tokenizer,
        system=system_message(arguments.system),
        style=ChatStyle(arguments.chat_style),
        prefill=arguments.prefill,
    )


def note_without_chat_tokens(tokenizer: Tokenizer) -> None:
    """Print a note if the model was not trained on chats with special tokens."""
    if not tokenizer.instruct:
        print(
            "note: this model has no tokens for chats ([USER], [ASSISTANT]) and was probably not trained on them; "
            "`generate` without --chat continues a prompt",
            file=sys.stderr,
        )


def system_message(name: str) -> str:
    """Return the released system message of that name."""
    from emu_jax.generation.chat import SYSTEM_IMAGE, SYSTEM_VIDEO

    return {"none": "", "image": SYSTEM_IMAGE, "video": SYSTEM_VIDEO}[name]


def output_file(output: str) -> Path | None:
    """Return the file of --output, or None for one of its keywords.

    Raises:
      UserError: it is neither, or its folder does not exist.
    """
    if output in (TEXT, IMAGE, STORY):
        return None
    path = local_path(output)
    if path.suffix.lower() not in _IMAGE_SUFFIXES:
        raise UserError(f"--output must be {TEXT}, {IMAGE}, {STORY} or a file ending in .png or .jpg, not {output!r}.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} into.")
    return path


def free_name(stem: str) -> Path:
    """Return the first of `stem`-1.png, `stem`-2.png, ... that does not exist."""
    number = 1
    while Path(f"{stem}-{number}.png").exists():
        number += 1
    return Path(f"{stem}-{number}.png")


def save_image(image: PIL.Image.Image, path: Path) -> None:
    """Write an image atomically; its format depends on the suffix."""
    encoded = io.BytesIO()
    image.save(encoded, PIL.Image.registered_extensions()[path.suffix.lower()])
    write_bytes(path, encoded.getvalue())


def _one_image(images: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    from emu_jax.generation.pixels import contact_sheet

    return images[0] if len(images) == 1 else contact_sheet(images)


def _write_story(
    emu: EmuPipeline,
    parts: list[Part],
    arguments: argparse.Namespace,
    text: TextOptions,
    image: ImageOptions,
    screen: Screen,
) -> None:
    from emu_jax.cli.loading import other_process

    emu.visual_decoder  # noqa: B018  raises errors before the work
    generated = emu.generate(
        parts,
        max_images=arguments.max_images,
        open_image=arguments.open_image,
        decode=True,
        image=image,
        special_tokens=arguments.special_tokens,
        safety=screen.safety,
        **dataclasses.asdict(text),
    )
    if other_process():
        return
    for part in generated:
        if isinstance(part, PIL.Image.Image):
            path = free_name("emu")
            save_image(part, path)
            print(f"<{path}>")
        else:
            print(part)
