"""A self-contained HTML page: its style, and the few elements that reports are made of. No script, no network."""

import base64
import html
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from emu_jax.errors import UserError

_STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Section:
    """A part of the page: `body` is HTML, the rest text."""

    title: str
    body: str
    intro: str = ""


def write_report(path: Path | str, sections: Sequence[Section], *, title: str, lead: str, footer: str = "") -> None:
    """Writes the page; sections without a body are left out. Whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    text = render_page(sections, title=title, lead=lead, footer=footer)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from None


def render_page(sections: Sequence[Section], *, title: str, lead: str, footer: str = "") -> str:
    """The whole document as text."""
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>' for section in shown)
    parts = [
        f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>'
        f'{f"""<p class="intro">{escape(section.intro)}</p>""" if section.intro else ""}{section.body}</section>'
        for section in shown
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header><nav>{links}</nav>\n'
        + "\n".join(parts)
        + (f"\n<footer>{escape(footer)}</footer>" if footer else "")
        + "</body></html>\n"
    )


def escape(text: str) -> str:
    return html.escape(text)


def picture(image: np.ndarray, *, alt: str = "") -> str:
    """An `<img>` with uint8 [H, W, 3] pixels inside it as PNG."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'


def pictures(images: Iterable[np.ndarray | str], *, kind: str = "") -> str:
    """Pictures in a row; strings between them are signs such as "+" or "→"."""
    parts = [f"<span>{escape(item)}</span>" if isinstance(item, str) else picture(item) for item in images]
    return f'<div class="pictures {kind}">{"".join(parts)}</div>'


def card(*parts: str, right: bool | None = None) -> str:
    """A framed thing, marked as right or wrong where it was judged."""
    kind = "" if right is None else (" right" if right else " wrong")
    return f'<article class="card{kind}">{"".join(parts)}</article>'


def cards(items: Iterable[str], *, least: str = "10.5rem") -> str:
    """Cards in as many columns as fit, each at least so wide; nothing where there are none."""
    body = "".join(items)
    return f'<div class="cards" style="--least: {least}">{body}</div>' if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table of HTML cells; a cell that begins with `<td` or `<th` is taken as it is."""
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(
        f"<tr>{''.join(c if c.startswith(('<td', '<th')) else f'<td>{c}</td>' for c in row)}</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """What is folded away until it is asked for."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
