"""Convert a document to a token sequence with its loss masks.

Example: a pair with the image first and N = 2 image tokens ("#" is a 1):

    tokens           <s>  [IMG]  <image>  <image>  [/IMG]  a  cat  </s>
    text loss                                      #       #  #            label: the token at the next position
    regression            #      #        #                                target: the next input embedding
    with predict_boi #                                                     the model learns to start an image

Labels that are `[IMG]`, `[/IMG]`, `<image>` or padding do not count, as in the release; with `predict_boi`, `[IMG]`
counts.
"""

import dataclasses

import numpy as np

from emu_jax.data.chat_layout import TokenSpan
from emu_jax.data.document import Document, Layout
from emu_jax.data.images import DecodeError
from emu_jax.data.layouts import DocumentSpans, ImageSpan, layout_document
from emu_jax.data.sequence_config import Regress, SequenceConfig
from emu_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """One document, ready to be packed.

    Attributes:
      tokens: [n] int32, `<s>` first; `</s>` last unless the document was truncated.
      text_loss_mask, regression_mask: [n] float32, as in a batch.
      starts: the first position of each document: one, or two for a preference pair.
      images: one for each run of `<image>`, in order; still encoded, so that sequences waiting to be packed stay small.
    """

    tokens: np.ndarray
    text_loss_mask: np.ndarray
    regression_mask: np.ndarray
    images: tuple[bytes | np.ndarray, ...]
    starts: tuple[int, ...] = (0,)

    @property
    def has_loss(self) -> bool:
        """True if at least one position counts in a loss."""
        return bool(self.text_loss_mask.any() or self.regression_mask.any())


def build_sequence(
    document: Document, *, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator
) -> TokenSequence:
    """Convert a document, whose videos are decoded to frames, to a token sequence.

    `rng` decides the order of image and text, and the start of a page that is too long.

    Layouts, with N = 1 and words for text tokens:

        PAIR        <s> [IMG] <image> [/IMG] a cat </s>      or  <s> a cat [IMG] <image> [/IMG] </s>
        VIDEO       as a PAIR, with one image per frame
        PAGE        <s> one sentence [IMG] <image> [/IMG] another ... </s>
        STORYBOARD  <s> [IMG] <image> [/IMG] first subtitle [IMG] <image> [/IMG] second subtitle ... </s>
        CHAT        <s> system [USER] : question [IMG] <image> [/IMG] [ASSISTANT] : answer </s> [USER] : ...
                    where only "answer </s>" has a text loss

    A document that is too long is truncated, never within an image. A PAIR or VIDEO loses the end of its text. A PAGE
    or STORYBOARD becomes a section that starts at a random segment; a section of a PAGE has its first `max_images`
    images and all of its text, as in the paper. A CHAT is truncated to its first complete turns,
    or to the start of its first answer if no turn fits. Truncated documents other than chats do not end with `</s>`.

    Raises:
      DecodeError: the document has no text and no image.
    """
    found = layout_document(document, config, tokenizer, rng)
    if not any(isinstance(span, ImageSpan) or span.ids for span in found.spans):
        raise DecodeError("the document has neither text nor images")
    ends = found.is_complete and document.layout not in (Layout.CHAT, Layout.PREFERENCE)
    return assemble(found, ends=ends, config=config, tokenizer=tokenizer)


def assemble(document: DocumentSpans, *, ends: bool, config: SequenceConfig, tokenizer: Tokenizer) -> TokenSequence:
    """Return the tokens and masks of a document, with `<s>` first and, if it `ends`, `</s>` last."""
    n = config.num_image_tokens
    image_run = [tokenizer.boi_id, *[tokenizer.image_token_id] * n, tokenizer.eoi_id]
    tokens, is_label, regression, images = [tokenizer.bos_id], [0], [0], []
    after_text = False
    for span in document.spans:
        if isinstance(span, TokenSpan):
            tokens += span.ids
            is_label += [int(span.loss)] * len(span.ids)
            regression += [0] * len(span.ids)
            after_text = after_text or bool(span.ids)
        else:
            regress = span.loss and (
                config.regress is Regress.ALL or (config.regress is Regress.AFTER_TEXT and after_text)
            )
            tokens += image_run
            is_label += [int(config.predict_boi and span.loss)] + [0] * (n + 1)
            regression += [int(regress)] * (n + 1) + [0]
            images.append(span.data)
    if ends:
        tokens.append(tokenizer.eos_id)
        is_label.append(1)
        regression.append(0)
    text_loss_mask = np.zeros(len(tokens), np.float32)
    text_loss_mask[:-1] = is_label[1:]
    return TokenSequence(
        tokens=np.asarray(tokens, np.int32),
        text_loss_mask=text_loss_mask,
        regression_mask=np.asarray(regression, np.float32),
        images=tuple(images),
    )
