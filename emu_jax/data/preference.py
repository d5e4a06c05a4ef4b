"""Convert a preference to a sequence of two documents: its chat with the chosen and with the rejected answer.

tokens       <s> [USER] : a cat? [ASSISTANT] : yes </s>   <s> [USER] : a cat? [ASSISTANT] : no </s>
segment       1   1     1 1 1    1           1 1   1       2   2     2 2 2    2           2 2  2
text loss                                    #   #                                        #  #
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from emu_jax.data.document import Document, Layout, Role, Segment
from emu_jax.data.images import DecodeError
from emu_jax.data.layouts import layout_document
from emu_jax.data.sequence import TokenSequence, assemble
from emu_jax.data.sequence_config import SequenceConfig
from emu_jax.data.tokenizer import Tokenizer


def build_pair(
    document: Document, *, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator
) -> TokenSequence:
    """Convert a PREFERENCE, whose videos are decoded to frames. Only its two last answers have a loss.

    Raises:
      DecodeError: the document is not a preference, or both answers do not fit in one row.
    """
    if document.layout is not Layout.PREFERENCE:
        raise DecodeError(f"the document is not a preference but a {document.layout.value}")
    prompt, chosen, rejected = split_answers(document.segments)

    def build(segments: Sequence[Segment]) -> TokenSequence:
        chat = dataclasses.replace(document, segments=tuple(segments), layout=Layout.CHAT)
        found = layout_document(chat, config, tokenizer, rng)
        if not found.is_complete:
            raise DecodeError("an answer does not fit in a row")
        return assemble(found, ends=False, config=config, tokenizer=tokenizer)

    parts = [build([*prompt, *answer]) for answer in (chosen, rejected)]
    images = tuple(image for part in parts for image in part.images)
    tokens = np.concatenate([part.tokens for part in parts])
    if len(tokens) > config.length or len(images) > config.max_images:
        raise DecodeError("both answers do not fit in a row", f"{len(tokens)} tokens, {len(images)} images")
    start = len(build(prompt).tokens)
    for part in parts:
        part.text_loss_mask[:start] = 0  # of earlier answers
    return TokenSequence(
        tokens=tokens,
        text_loss_mask=np.concatenate([part.text_loss_mask for part in parts]),
        regression_mask=np.zeros(len(tokens), np.float32),
        images=images,
        starts=(0, len(parts[0].tokens)),
    )


def split_answers(segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment], list[Segment]]:
    """Return the segments before the last answer, the chosen answer, and the rejected one with the same role."""
    rest = [segment for segment in segments if segment.role is not Role.REJECTED]
    rejected = [dataclasses.replace(s, role=Role.ASSISTANT) for s in segments if s.role is Role.REJECTED]
    first = max((i + 1 for i, segment in enumerate(rest) if segment.role is not Role.ASSISTANT), default=0)
    return rest[:first], rest[first:], rejected
