"""Prompts of the command line: words that are files or text, checked before a model is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from emu_jax.data.tokenizer import BOI, EOI, IMAGE_TOKEN
from emu_jax.errors import UserError
from emu_jax.io.paths import local_path

if TYPE_CHECKING:
    from emu_jax.generation.prompt import Part

_TEXT_IN_BRACKETS = (IMAGE_TOKEN.strip("<>"), "s", "/s", "unk")  # names of tokens, not of files


def words_to_parts(words: list[str]) -> list[Part]:
    """Return the words of the command line as paths and texts."""
    from emu_jax.data.media_paths import named_file

    return [named_file(word) or word for word in words]


def parse_prompt(prompt: str) -> list[Part]:
    """Parse text with files in angle brackets: `"<a.jpg> What is this?"` -> `[Path("a.jpg"), " What is this?"]`.

    Brackets with spaces inside are text unless the file exists: "2 < 3 > 1".
    """
    from emu_jax.data.media_paths import named_file

    parts: list[Part] = []
    for i, piece in enumerate(re.split(r"<([^<>\n]+)>", prompt)):
        if i % 2 == 0:
            if piece:
                parts.append(piece)
        elif piece in _TEXT_IN_BRACKETS or (" " in piece and not named_file(piece)):
            parts.append(f"<{piece}>")
        else:
            parts.append(Path(piece))
    return parts


def check_parts(parts: list[Part], *, special_tokens: bool = False) -> None:
    """Check files and texts, so that mistakes are reported before a model is loaded.

    Raises:
      UserError: a file is missing or not an image, or a text contains image tokens or is not valid Unicode.
    """
    from emu_jax.data.images import DecodeError, decode
    from emu_jax.data.media_paths import is_video

    for part in parts:
        if isinstance(part, str):
            _check_text(part, special_tokens=special_tokens)
        elif isinstance(part, Path) and not os.path.isfile(local_path(part)):
            raise UserError(f"There is no file {part}.")
        elif isinstance(part, Path) and not is_video(part):
            try:
                decode(part)
            except DecodeError as error:
                raise UserError(f"{part}: {error}.") from None


def _check_text(text: str, *, special_tokens: bool) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"The text {text!r} is not valid UTF-8.") from None
    for token in (IMAGE_TOKEN,) if special_tokens else (IMAGE_TOKEN, BOI, EOI):
        if token in text:
            hint = "name the file itself" if token == IMAGE_TOKEN else "name the file itself, or add --special-tokens"
            raise UserError(f"The text contains the image token {token}; to insert an image, {hint}.")
