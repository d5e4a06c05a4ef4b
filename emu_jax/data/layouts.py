"""Lay out each kind of document as spans of tokens and images that fit in one sequence."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from emu_jax.data.chat_layout import SYSTEM_IMAGE, SYSTEM_VIDEO, TokenSpan, system_tokens, turn_tokens
from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text, Video
from emu_jax.data.sequence_config import SequenceConfig, SystemMessage
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageSpan:
    """An image; with `loss` it may have a regression loss, and its `[IMG]` a text loss (`predict_boi`)."""

    data: bytes | np.ndarray
    loss: bool = True


Span = TokenSpan | ImageSpan


@dataclasses.dataclass(frozen=True)
class DocumentSpans:
    """The spans of a document, in order.

    Attributes:
      spans: fit in the configured length together with `<s>` and `</s>`.
      is_complete: False if the end of the document was truncated, so that no `</s>` follows.
    """

    spans: list[Span]
    is_complete: bool


def layout_document(
    document: Document, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator
) -> DocumentSpans:
    """Lay out a document by its kind (see `emu_jax.data.sequence.build_sequence`)."""
    if document.layout in (Layout.CHAT, Layout.PREFERENCE):
        return _chat(document, config, tokenizer)
    if document.layout in (Layout.PAIR, Layout.VIDEO):
        return _pair(document, config, tokenizer, rng)
    return _page(document, config, tokenizer, rng)


def _pair(document: Document, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator) -> DocumentSpans:
    ids = [i for s in document.segments if isinstance(s, Text) for i in _text_ids(s.text, tokenizer)]
    images = [image for s in document.segments if not isinstance(s, Text) for image in _image_spans(s)]
    # The loader returns at most `frames` per video; a row with capacity for fewer gets evenly spaced ones.
    max_images = min(config.max_images, (config.length - 2) // config.image_length)
    if len(images) > max_images:
        images = [images[i] for i in np.linspace(0, len(images) - 1, max_images).round().astype(int)]
    max_text = config.length - 2 - len(images) * config.image_length
    text = TokenSpan(ids[:max_text])
    if rng.random() < config.image_first:
        return DocumentSpans([*images, text], is_complete=len(ids) <= max_text)
    return DocumentSpans([text, *images], is_complete=True)  # the text is truncated, but the document has an end


def _page(document: Document, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator) -> DocumentSpans:
    segments = list(document.segments)
    if document.layout is Layout.PAGE and config.page_image_first < 1:
        i = 0
        while i + 1 < len(segments):
            if isinstance(segments[i], Image) and isinstance(segments[i + 1], Text):
                if rng.random() >= config.page_image_first:
                    segments[i], segments[i + 1] = segments[i + 1], segments[i]
                i += 1
            i += 1
    spans: list[Span] = []
    for segment in segments:
        if isinstance(segment, Text):
            ids = _text_ids(segment.text, tokenizer)
            spans += [TokenSpan(ids)] if ids else []
        else:
            spans += _image_spans(segment)
    return _truncate(_section(spans, document.layout, config, rng), config)


def _section(spans: Sequence[Span], layout: Layout, config: SequenceConfig, rng: np.random.Generator) -> Sequence[Span]:
    """Return a section of a document that does not fit, from a random span that is followed by enough to fill the row.

    A section of a page has its first `max_images` images and loses the others; a storyboard ends before the next image.
    """
    capacity = config.length - 2
    is_image = np.array([isinstance(span, ImageSpan) for span in spans], bool)
    sizes = np.array([len(span.ids) if isinstance(span, TokenSpan) else config.image_length for span in spans], int)
    tokens, images = np.cumsum(sizes[::-1])[::-1], np.cumsum(is_image[::-1])[::-1]  # in a span and those after it
    if layout is Layout.PAGE:
        tokens = tokens - config.image_length * np.maximum(images - config.max_images, 0)
        starts, fits = tokens >= capacity, tokens[:1] <= capacity
    else:
        starts = (tokens >= capacity) | (images >= config.max_images)
        fits = (tokens[:1] <= capacity) & (images[:1] <= config.max_images)
    start = 0 if fits.all() else int(rng.choice(np.flatnonzero(starts)))
    if layout is not Layout.PAGE:
        return spans[start:]
    number = np.cumsum(is_image[start:])  # of each image in the section
    used = ~is_image[start:] | (number <= config.max_images)
    return [spans[start + int(i)] for i in np.flatnonzero(used)]


def _chat(document: Document, config: SequenceConfig, tokenizer: Tokenizer) -> DocumentSpans:
    spans: list[Span] = [*system_tokens(_system_message(document, config), tokenizer=tokenizer)]
    turns: list[tuple[Role, list[Segment]]] = []
    for segment in document.segments:
        role = segment.role or Role.USER
        if role in (Role.SYSTEM, Role.REJECTED):
            continue
        if not turns or turns[-1][0] is not role:
            turns.append((role, []))
        turns[-1][1].append(segment)
    for role, segments in turns:
        parts: list[str | ImageSpan] = []
        for segment in segments:
            if isinstance(segment, Text):
                parts.append(segment.text)
            else:
                parts += _image_spans(segment, loss=role is Role.ASSISTANT)
        spans += turn_tokens(role, parts, tokenizer=tokenizer)
    truncated = _truncate(spans, config)
    if truncated.is_complete:
        return truncated
    ends = [
        i for i, span in enumerate(truncated.spans) if isinstance(span, TokenSpan) and span.ids == [tokenizer.eos_id]
    ]
    return DocumentSpans(truncated.spans[: ends[-1] + 1] if ends else truncated.spans, is_complete=False)


def _system_message(document: Document, config: SequenceConfig) -> str:
    texts = [s.text for s in document.segments if isinstance(s, Text) and s.role is Role.SYSTEM]
    if not texts and config.system_message is SystemMessage.RELEASE:
        if any(isinstance(s, Video) for s in document.segments):
            return SYSTEM_VIDEO
        if any(isinstance(s, Image) for s in document.segments):
            return SYSTEM_IMAGE
    return " ".join(texts)


def _truncate(spans: Sequence[Span], config: SequenceConfig) -> DocumentSpans:
    """Return the first spans that fit together with `<s>` and `</s>`; a text is split, an image is not."""
    fitting: list[Span] = []
    free, images = config.length - 2, 0
    for span in spans:
        if isinstance(span, TokenSpan):
            if len(span.ids) > free:
                return DocumentSpans([*fitting, TokenSpan(span.ids[:free], span.loss)], is_complete=False)
            free -= len(span.ids)
        else:
            if config.image_length > free or images == config.max_images:
                return DocumentSpans(fitting, is_complete=False)
            free -= config.image_length
            images += 1
        fitting.append(span)
    return DocumentSpans(fitting, is_complete=True)


def _image_spans(segment: Segment, *, loss: bool = True) -> list[ImageSpan]:
    if isinstance(segment, Image):
        return [ImageSpan(segment.data, loss)]
    assert isinstance(segment, Video)
    if isinstance(segment.data, bytes):
        raise UserError("Decode a video to frames before laying it out; see emu_jax.data.video.take_frames.")
    return [ImageSpan(frame.data, loss) for frame in segment.data]


def _text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text.strip()) if text.strip() else []
