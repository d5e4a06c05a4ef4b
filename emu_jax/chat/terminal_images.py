"""Images inside terminals that show them, by one of three protocols: kitty's, iTerm2's, or sixel.

Kitty: https://sw.kovidgoyal.net/kitty/graphics-protocol. iTerm2: https://iterm2.com/documentation-images.html. Sixel:
VT330/VT340 Programmer Reference Manual, volume 2, chapter 14.
"""

from __future__ import annotations

import base64
import enum
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping

_KITTY_CHUNK = 4096  # bytes of base64 in one escape sequence
_SIXEL_SIDE = 384  # pixels at most
_COLORS = 256


class Protocol(enum.Enum):
    """For images in a terminal."""

    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"


def find_protocol(environment: Mapping[str, str]) -> Protocol | None:
    """Return the protocol of the terminal that the environment variables name, None if it shows no images."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None
    if "kitty" in term or "KITTY_WINDOW_ID" in environment or program == "ghostty":
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm"):
        return Protocol.ITERM
    if "sixel" in term or term.startswith(("foot", "mlterm", "yaft")):
        return Protocol.SIXEL
    return None


def escape_sequences(png: bytes, protocol: Protocol) -> str:
    """Return what shows a PNG file when it is written to the terminal."""
    encoded = base64.b64encode(png).decode()
    match protocol:
        case Protocol.KITTY:
            return "".join(_kitty_chunks(encoded))
        case Protocol.ITERM:
            return f"\x1b]1337;File=inline=1;size={len(png)}:{encoded}\x07"
        case Protocol.SIXEL:
            return sixels(png)


def _kitty_chunks(encoded: str) -> Iterator[str]:
    for start in range(0, len(encoded), _KITTY_CHUNK):
        more = int(start + _KITTY_CHUNK < len(encoded))
        head = f"a=T,f=100,m={more}" if start == 0 else f"m={more}"
        yield f"\x1b_G{head};{encoded[start : start + _KITTY_CHUNK]}\x1b\\"


def sixels(png: bytes) -> str:
    """Return an image as sixel data: bands of six rows, one run-length encoded line for each color in a band."""
    import numpy as np
    import PIL.Image

    with PIL.Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((_SIXEL_SIDE, _SIXEL_SIDE))
    indexed = image.quantize(_COLORS)
    palette = indexed.getpalette() or []
    pixels = np.asarray(indexed)
    colors = [palette[3 * i : 3 * i + 3] for i in range(pixels.max() + 1)]
    lines = [f"#{i};2;{';'.join(str(round(value * 100 / 255)) for value in color)}" for i, color in enumerate(colors)]
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))
        rows = [f"#{color}{_runs(((band == color) * bits[:, None]).sum(0))}" for color in np.unique(band)]
        lines.append("$".join(rows) + "-")
    return f'\x1bPq"1;1;{image.width};{image.height}{"".join(lines)}\x1b\\'


def _runs(columns: Iterable[int]) -> str:
    """Return six-pixel columns as characters; repetitions are `!COUNT` and the character."""
    found = ((len(list(group)), chr(63 + int(value))) for value, group in itertools.groupby(columns))
    return "".join(f"!{count}{character}" if count > 3 else character * count for count, character in found)
