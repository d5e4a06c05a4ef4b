"""A page that shows batches as the model will get them: documents in their rows, images in place, what is learnt."""

import base64
import collections
import dataclasses
import html
from collections.abc import Sequence

import numpy as np

from emu_jax.data.batch import Batch, fill
from emu_jax.data.document import Document, Image, Text
from emu_jax.data.images import decode, encode_png
from emu_jax.data.tokenizer import Tokenizer

_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#eeca3b")

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.05em; margin: 1.4em 0 .3em; color: #555; font-weight: 600; }
table { border-collapse: collapse; } td, th { padding: .15em .9em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
th { border-bottom: 1px solid #999; font-weight: 600; }
.document { border-left: 5px solid; padding: .15em .6em; margin: .25em 0; background: #fafafa; }
.document { overflow-wrap: anywhere; }
.set { font-size: .8em; color: #777; margin-right: .6em; }
.token { border-radius: 3px; padding: 0 1px; white-space: pre-wrap; color: #888; }
.special { font-size: .8em; color: #999; }
.learnt { background: #c9efcf; color: #111; }
.picture { display: inline-block; vertical-align: middle; margin: 2px; text-align: center; border: 3px solid #ddd; }
.picture.regressed { border-color: #a06cd5; }
.picture img { display: block; image-rendering: pixelated; min-width: 56px; max-width: 112px; }
.legend span { margin-right: 1.5em; } svg text { font: 11px system-ui, sans-serif; }
"""


@dataclasses.dataclass(frozen=True)
class _Documents:
    """What the page counts of each set."""

    lengths: list[int] = dataclasses.field(default_factory=list)
    images: list[int] = dataclasses.field(default_factory=list)
    text: list[int] = dataclasses.field(default_factory=list)
    regression: list[int] = dataclasses.field(default_factory=list)


def page(batches: Sequence[Batch], *, tokenizer: Tokenizer, source_names: Sequence[str], rows: int = 32) -> str:
    """The HTML page of `batches`, self-contained; the first `rows` rows are drawn, all are counted."""
    counts: dict[int, _Documents] = collections.defaultdict(_Documents)
    drawn: list[str] = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            documents = _documents(batch, row, tokenizer)
            for document in documents:
                of_set = counts[document.source]
                of_set.lengths.append(len(document.tokens))
                of_set.images.append(len(document.images))
                of_set.text.append(int(document.text_loss.sum()))
                of_set.regression.append(int(document.regression.sum()))
            if len(drawn) < rows:
                drawn.append(_row(len(drawn), documents, batch, tokenizer, source_names))
    fills = [fill(batch) for batch in batches]
    tokens, images = (float(np.mean([getattr(f, name) for f in fills])) for name in ("tokens", "images"))
    length, slots = batches[0]["tokens"].shape[1], batches[0]["images"].shape[1]
    lengths = [n for of_set in counts.values() for n in of_set.lengths]
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Data</title><style>{_STYLE}</style>',
            "<h1>What the model will get</h1>",
            f"<p>{len(batches)} batches of {len(batches[0]['tokens'])} rows of {length} tokens and {slots} images: "
            f"{tokens:.1%} of the tokens and {images:.1%} of the image slots are used.</p>",
            _table(counts, source_names),
            "<h2>Tokens of a document</h2>",
            histogram(lengths, length=length),
            '<h2>Rows</h2><p class="legend"><span><span class="token learnt">token</span> is learnt (the place before '
            'it has text loss)</span><span><span class="token">token</span> is only read</span>'
            '<span class="picture regressed">&nbsp;image&nbsp;</span> its embeddings are learnt by regression</p>',
            *drawn,
            "</html>",
        ]
    )


def contact_sheet(documents: Sequence[Document], *, title: str) -> str:
    """A self-contained page of whole documents, as they are stored."""
    blocks = []
    for document in documents:
        spans = []
        for segment in document.segments:
            role = f'<span class="set">{segment.role.value}</span>' if segment.role else ""
            if isinstance(segment, Text):
                spans.append(f"{role}{html.escape(segment.text)} ")
            elif isinstance(segment, Image) or not isinstance(segment.data, bytes):
                frames = [segment] if isinstance(segment, Image) else segment.data
                spans.append(role + "".join(_picture(decode(frame.data)) for frame in frames))  # type: ignore[union-attr]
        key = html.escape(f"{document.source} {document.key}")
        blocks.append(f'<div class="document"><span class="set">{key}</span><br>{"".join(spans)}</div>')
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return "\n".join([head, f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>", *blocks, "</html>"])


def _picture(pixels: np.ndarray, *, kind: str = "", title: str = "", alt: str = "") -> str:
    data = base64.b64encode(encode_png(pixels)).decode()
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return f'<span class="picture{kind}" title="{title}">{image}</span>'


@dataclasses.dataclass(frozen=True)
class _Document:
    source: int
    tokens: np.ndarray
    learnt: np.ndarray  # [n] bool: the place before has text loss
    text_loss: np.ndarray
    regression: np.ndarray
    images: np.ndarray  # [k H W 3]


def _documents(batch: Batch, row: int, tokenizer: Tokenizer) -> list[_Document]:
    found, slot = [], 0
    segments = batch["segment_ids"][row]
    for number in range(1, int(segments.max()) + 1):
        here = segments == number
        tokens, text_loss = batch["tokens"][row, here], batch["text_loss_mask"][row, here] > 0
        images = _runs(tokens == tokenizer.image_token_id)
        found.append(
            _Document(
                source=int(batch["source_ids"][row, here][0]),
                tokens=tokens,
                learnt=np.concatenate([[False], text_loss[:-1]]),
                text_loss=text_loss,
                regression=batch["regression_mask"][row, here] > 0,
                images=batch["images"][row, slot : slot + images],
            )
        )
        slot += images
    return found


def _runs(mask: np.ndarray) -> int:
    return int((mask & ~np.concatenate([[False], mask[:-1]])).sum())


def _row(
    number: int, documents: Sequence[_Document], batch: Batch, tokenizer: Tokenizer, source_names: Sequence[str]
) -> str:
    used = sum(len(document.tokens) for document in documents)
    images = sum(len(document.images) for document in documents)
    length, slots = batch["tokens"].shape[1], batch["images"].shape[1]
    blocks = [f"<h2>Row {number}: {used} of {length} tokens, {images} of {slots} images</h2>"]
    for document in documents:
        colour, name = _COLOURS[document.source % len(_COLOURS)], html.escape(source_names[document.source])
        body = "".join(_pieces(document, tokenizer))
        blocks.append(
            f'<div class="document" style="border-color:{colour}"><span class="set">{name}</span>{body}</div>'
        )
    return "\n".join(blocks)


def _pieces(document: _Document, tokenizer: Tokenizer) -> list[str]:
    spans, image, place = [], 0, 0
    tokens = document.tokens.tolist()
    while place < len(tokens):
        learnt = " learnt" if document.learnt[place] else ""
        if tokens[place] == tokenizer.image_token_id:
            end = place
            while end < len(tokens) and tokens[end] == tokenizer.image_token_id:
                end += 1
            regressed = " regressed" if document.regression[place] else ""
            title = f"{end - place} x &lt;image&gt;"
            spans.append(_picture(document.images[image], kind=regressed, title=title, alt=f"image {image}"))
            image += 1
            place = end
            continue
        piece = html.escape(tokenizer.piece(tokens[place]).replace("▁", " "))
        special = " special" if tokens[place] >= tokenizer.pad_id or tokens[place] < 3 else ""
        spans.append(f'<span class="token{special}{learnt}" title="place {place}, id {tokens[place]}">{piece}</span>')
        place += 1
    return spans


def _table(counts: dict[int, _Documents], source_names: Sequence[str]) -> str:
    lines = [
        "<table><tr><th>set<th>documents<th>tokens each<th>images each<th>learnt tokens each<th>regressed each</tr>"
    ]
    for source, of_set in sorted(counts.items()):
        means = "".join(
            f"<td>{np.mean(v):.1f}" for v in (of_set.lengths, of_set.images, of_set.text, of_set.regression)
        )
        lines.append(f"<tr><td>{html.escape(source_names[source])}<td>{len(of_set.lengths)}{means}</tr>")
    return "".join([*lines, "</table>"])


def histogram(lengths: Sequence[int], *, length: int, bars: int = 40) -> str:
    """Counts of document lengths from 0 to `length` tokens, as an SVG."""
    counts, edges = np.histogram(lengths, bins=min(bars, length), range=(0, length))
    width, height, most = 720, 140, max(int(counts.max()), 1)
    step = width / len(counts)
    drawn = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * c / most:.1f}" width="{step - 1:.1f}" '
        f'height="{height * c / most:.1f}" fill="#4c78a8">'
        f"<title>{edges[i]:.0f} to {edges[i + 1]:.0f}: {c}</title></rect>"
        for i, c in enumerate(counts.tolist())
    )
    marks = "".join(
        f'<text x="{width * share:.0f}" y="{height + 15}" text-anchor="middle">{length * share:.0f}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    box = f'width="{width + 40}" height="{height + 22}" viewBox="-20 0 {width + 40} {height + 22}"'
    return f"<svg {box}>{drawn}{marks}</svg>"
