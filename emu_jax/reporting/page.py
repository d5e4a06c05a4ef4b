"""A self-contained HTML page: its style and the few elements that reports consist of. No script, no network."""

import base64
import html
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from emu_jax.io.files import write_text

_STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Section:
    """A section of the page: `body` is HTML; `title` and `intro` are text."""

    title: str
    body: str
    intro: str = ""


def write_page(
    path: str | os.PathLike[str], sections: Sequence[Section], *, title: str, lead: str, footer: str = ""
) -> None:
    """Write the page atomically. Sections without a body are left out.

    Raises:
      UserError: the file cannot be written.
    """
    write_text(path, render_page(sections, title=title, lead=lead, footer=footer))


def render_page(sections: Sequence[Section], *, title: str, lead: str, footer: str = "", style: str = "") -> str:
    """Return the complete page; `style` is CSS that is added to the style of all pages."""
    filled = [section for section in sections if section.body]
    links = "".join(f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>' for section in filled)
    parts = [
        f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>'
        f'{f"""<p class="intro">{escape(section.intro)}</p>""" if section.intro else ""}{section.body}</section>'
        for section in filled
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{_STYLE.read_text(encoding='utf-8')}{style}</style></head>\n<body>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header><nav>{links}</nav>\n'
        + "\n".join(parts)
        + (f"\n<footer>{escape(footer)}</footer>" if footer else "")
        + "</body></html>\n"
    )


def escape(text: str) -> str:
    """Return `text` as HTML, also safe inside quoted attributes."""
    return html.escape(text)


def image_tag(image: np.ndarray, *, alt: str = "") -> str:
    """Return an `<img>` that contains uint8 [H, W, 3] pixels as PNG."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def image_row(images: Iterable[np.ndarray | str], *, css_class: str = "") -> str:
    """Return images in a row; strings between them are signs such as "+" or "→"."""
    parts = [f"<span>{escape(item)}</span>" if isinstance(item, str) else image_tag(item) for item in images]
    return f'<div class="images {css_class}">{"".join(parts)}</div>'


def card(*parts: str, correct: bool | None = None) -> str:
    """Return a framed box, marked as correct or wrong unless `correct` is None."""
    mark = "" if correct is None else (" correct" if correct else " wrong")
    return f'<article class="card{mark}">{"".join(parts)}</article>'


def cards(items: Iterable[str], *, min_width: str = "10.5rem") -> str:
    """Return cards in as many columns of at least `min_width` as fit; an empty text without cards."""
    body = "".join(items)
    return f'<div class="cards" style="--min-width: {min_width}">{body}</div>' if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, css_class: str = "") -> str:
    """Return a table of HTML cells; a cell that starts with `<td` or `<th` is used as it is."""
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(
        f"<tr>{''.join(c if c.startswith(('<td', '<th')) else f'<td>{c}</td>' for c in row)}</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="{css_class}">{top}<tbody>{body}</tbody></table></div>'


def facts_table(facts: Mapping[str, str]) -> str:
    """Return a table of two columns, name and value, both text; an empty text without facts."""
    rows = ([escape(name), escape(value)] for name, value in facts.items())
    return table((), rows, css_class="facts") if facts else ""


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """Return a section that the reader can unfold; an empty text without a body."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
