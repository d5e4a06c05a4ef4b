"""An HTML page that displays batches as the model receives them: rows, documents, images and loss masks."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from emu_jax.data.batch import Batch, fill
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.reporting.histogram import histogram
from emu_jax.reporting.page import Section, escape, image_tag, render_page, table

_COLORS = 8  # --l0 ... --l7 in the style of the page

_STYLE = """
.document { border-left: 5px solid; padding: .15em .6em; margin: .25em 0; overflow-wrap: anywhere; }
.token { border-radius: 3px; padding: 0 1px; white-space: pre-wrap; color: var(--soft); }
.special { font-size: .8em; }
.label { background: var(--good-wash); color: var(--ink); }
.image { display: inline-block; vertical-align: middle; margin: 2px; text-align: center;
  border: 3px solid var(--rule); }
.image.regression { border-color: var(--l3); }
.image img { display: block; image-rendering: pixelated; min-width: 56px; max-width: 112px; }
.key span { margin-right: 1.5em; }
"""

_KEY = (
    '<p class="key"><span><span class="token label">token</span> has a text loss at the position before it</span>'
    '<span><span class="token">token</span> has none</span>'
    '<span class="image regression">&nbsp;image&nbsp;</span> has a regression loss</p>'
)


@dataclasses.dataclass(frozen=True)
class _Statistics:
    """One value per document of a data set."""

    lengths: list[int] = dataclasses.field(default_factory=list)
    images: list[int] = dataclasses.field(default_factory=list)
    text_loss: list[int] = dataclasses.field(default_factory=list)
    regression_loss: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _PackedDocument:
    """One document of a row."""

    source: int
    tokens: np.ndarray
    is_label: np.ndarray  # [n] bool: the position before has a text loss
    text_loss: np.ndarray
    regression: np.ndarray
    images: np.ndarray  # [k H W 3]


def page(batches: Sequence[Batch], *, tokenizer: Tokenizer, source_names: Sequence[str], rows: int = 32) -> str:
    """Return a self-contained page about `batches`; the first `rows` rows are displayed, all are counted."""
    statistics: dict[int, _Statistics] = collections.defaultdict(_Statistics)
    displayed: list[str] = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            documents = _documents(batch, row, tokenizer)
            for document in documents:
                of_source = statistics[document.source]
                of_source.lengths.append(len(document.tokens))
                of_source.images.append(len(document.images))
                of_source.text_loss.append(int(document.text_loss.sum()))
                of_source.regression_loss.append(int(document.regression.sum()))
            if len(displayed) < rows:
                displayed.append(_row(len(displayed), documents, batch, tokenizer, source_names))
    fills = [fill(batch) for batch in batches]
    tokens, images = (float(np.mean([getattr(f, name) for f in fills])) for name in ("tokens", "images"))
    length, slots = batches[0]["tokens"].shape[1], batches[0]["images"].shape[1]
    lengths = [n for of_source in statistics.values() for n in of_source.lengths]
    lead = (
        f"{len(batches)} batches of {len(batches[0]['tokens'])} rows with {length} tokens and {slots} images: "
        f"{tokens:.1%} of the tokens and {images:.1%} of the image slots are used."
    )
    sections = [
        Section("Data sets", _statistics_table(statistics, source_names)),
        Section("Tokens per document", histogram(lengths, maximum=length)),
        Section("Rows", _KEY + "\n".join(displayed)),
    ]
    return render_page(sections, title="Batches as the model receives them", lead=lead, style=_STYLE)


def _documents(batch: Batch, row: int, tokenizer: Tokenizer) -> list[_PackedDocument]:
    documents, slot = [], 0
    segments = batch["segment_ids"][row]
    for number in range(1, int(segments.max()) + 1):
        here = segments == number
        tokens, text_loss = batch["tokens"][row, here], batch["text_loss_mask"][row, here] > 0
        images = _count_runs(tokens == tokenizer.image_token_id)
        documents.append(
            _PackedDocument(
                source=int(batch["source_ids"][row, here][0]),
                tokens=tokens,
                is_label=np.concatenate([[False], text_loss[:-1]]),
                text_loss=text_loss,
                regression=batch["regression_mask"][row, here] > 0,
                images=batch["images"][row, slot : slot + images],
            )
        )
        slot += images
    return documents


def _count_runs(mask: np.ndarray) -> int:
    return int((mask & ~np.concatenate([[False], mask[:-1]])).sum())


def _row(
    number: int, documents: Sequence[_PackedDocument], batch: Batch, tokenizer: Tokenizer, source_names: Sequence[str]
) -> str:
    used = sum(len(document.tokens) for document in documents)
    images = sum(len(document.images) for document in documents)
    length, slots = batch["tokens"].shape[1], batch["images"].shape[1]
    blocks = [f"<h3>Row {number}: {used} of {length} tokens, {images} of {slots} images</h3>"]
    for document in documents:
        color, name = f"var(--l{document.source % _COLORS})", escape(source_names[document.source])
        body = "".join(_tokens(document, tokenizer))
        blocks.append(f'<div class="document" style="border-color:{color}"><small>{name}</small> {body}</div>')
    return "\n".join(blocks)


def _tokens(document: _PackedDocument, tokenizer: Tokenizer) -> list[str]:
    spans, image, position = [], 0, 0
    tokens = document.tokens.tolist()
    while position < len(tokens):
        if tokens[position] == tokenizer.image_token_id:
            end = position
            while end < len(tokens) and tokens[end] == tokenizer.image_token_id:
                end += 1
            kind = " regression" if document.regression[position] else ""
            tag = image_tag(document.images[image], alt=f"image {image}")
            spans.append(f'<span class="image{kind}" title="{end - position} x &lt;image&gt;">{tag}</span>')
            image += 1
            position = end
            continue
        label = " label" if document.is_label[position] else ""
        piece = escape(tokenizer.piece(tokens[position]).replace("▁", " "))
        special = " special" if tokens[position] >= tokenizer.pad_id or tokens[position] < 3 else ""
        title = f"position {position}, id {tokens[position]}"
        spans.append(f'<span class="token{special}{label}" title="{title}">{piece}</span>')
        position += 1
    return spans


def _statistics_table(statistics: dict[int, _Statistics], source_names: Sequence[str]) -> str:
    head = ["set", "documents", "tokens each", "images each", "text labels each", "regression positions each"]
    rows = []
    for source, of_source in sorted(statistics.items()):
        values = (of_source.lengths, of_source.images, of_source.text_loss, of_source.regression_loss)
        means = [f"{np.mean(value):.1f}" for value in values]
        rows.append([escape(source_names[source]), str(len(of_source.lengths)), *means])
    return table(head, rows)
