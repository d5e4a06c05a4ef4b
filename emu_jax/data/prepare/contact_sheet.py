"""An HTML page with some documents of a prepared set, as stored."""

from collections.abc import Sequence

from emu_jax.data.document import Document, Image, Text
from emu_jax.data.images import decode
from emu_jax.reporting.page import Section, card, escape, image_tag, render_page


def contact_sheet(documents: Sequence[Document], *, title: str) -> str:
    """Return a self-contained page with the complete documents."""
    cards = "".join(card(_key(document), *_segments(document)) for document in documents)
    lead = f"{len(documents)} documents, as stored."
    return render_page([Section("Documents", cards)], title=title, lead=lead)


def _key(document: Document) -> str:
    return f"<small>{escape(f'{document.source} {document.key}')}</small><br>"


def _segments(document: Document) -> list[str]:
    parts = []
    for segment in document.segments:
        role = f"<small>{segment.role.value}</small> " if segment.role else ""
        if isinstance(segment, Text):
            parts.append(f"{role}{escape(segment.text)} ")
        else:
            frames = [segment] if isinstance(segment, Image) else segment.data
            assert not isinstance(frames, bytes), "stored videos are frames"
            parts.append(role + " ".join(image_tag(decode(frame.data)) for frame in frames))
    return parts
