"""From a document to a sequence of tokens and masks: pure functions, one for each layout.

A picture of one sequence, a pair with the image first and N = 2 image tokens ("#" marks a 1):

    tokens           <s>  [IMG]  <image>  <image>  [/IMG]  a  cat  </s>
    text loss                                      #       #  #            label at a place: the token one place on
    regression            #      #        #                                target: the input embedding one place on
    with predict_boi #                                                     here it learns to open an image

Labels that are `[IMG]`, `[/IMG]`, `<image>` (or padding) do not count, as in the release;
`predict_boi` makes `[IMG]` count.
"""

import dataclasses
import enum
from collections.abc import Iterable, Sequence

import numpy as np

from emu_jax.data import document as doc
from emu_jax.data.document import Document, Layout, Role
from emu_jax.data.images import DecodeError
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError

# The system messages of Emu-I, as released; their [IMG] and [/IMG] are the special tokens.
SYSTEM_IMAGE = (
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image after I provide "
    "it to you. Please answer my questions based on the given image."
)
SYSTEM_VIDEO = (
    "You are a helpful assistant and you will be presented with a video consisting of multiple chronological images: "
    "[IMG]ImageContent[/IMG]. You will be able to see the video after I provide it to you. Please answer my questions "
    "based on the given video."
)


class Regress(enum.Enum):
    """Which images of a document are learnt by regression."""

    ALL = "all"  # as in the paper
    AFTER_TEXT = "after_text"  # those with text before them: what text-to-image asks for
    NONE = "none"


class SystemMessage(enum.Enum):
    """What a chat without a system message of its own opens with."""

    NONE = "none"
    RELEASE = "release"  # SYSTEM_IMAGE or SYSTEM_VIDEO where the chat has one


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """How documents are laid out.

    Attributes:
      length: most tokens of one sequence (at most a row's L).
      max_images: most images of one sequence (at most a row's I); the paper takes 5 of a page.
      num_image_tokens: N, `<image>` tokens per image.
      frames: T, images that stand for a video.
      image_first: probability that the image (or video) of a PAIR or VIDEO stands before its text. Emu2: 0.5.
      page_image_first: probability that an image of a PAGE stays before the sentence it was matched with, rather than
        after it. 1 leaves a page as it was written.
      predict_boi: the place before `[IMG]` learns to open an image (the release does not).
      regress: which images are learnt by regression. A user's images in a chat never are.
      system_message: for chats.
    """

    length: int
    max_images: int
    num_image_tokens: int = 32
    frames: int = 8
    image_first: float = 0.5
    page_image_first: float = 1.0
    predict_boi: bool = False
    regress: Regress = Regress.ALL
    system_message: SystemMessage = SystemMessage.NONE

    def __post_init__(self):
        if self.length < self.image_length + 2:
            raise UserError(
                f"A sequence of {self.length} tokens holds no image of {self.image_length} beside <s> and </s>; "
                "raise length or lower num_image_tokens."
            )
        for name in ("max_images", "num_image_tokens", "frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("image_first", "page_image_first"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a probability, not {getattr(self, name)}.")

    @property
    def image_length(self) -> int:
        """Tokens of one image: N, and `[IMG]` and `[/IMG]` around them."""
        return self.num_image_tokens + 2


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """One document, ready to be packed.

    Attributes:
      tokens: [n] int32, `<s>` first; `</s>` last unless the document was cut.
      text_loss_mask, regression_mask: [n] float32, as in a batch.
      images: one for each run of `<image>`, in order; still encoded, so that what waits to be packed stays small.
    """

    tokens: np.ndarray
    text_loss_mask: np.ndarray
    regression_mask: np.ndarray
    images: tuple[bytes | np.ndarray, ...]

    @property
    def learns(self) -> bool:
        """Whether any place of it counts in a loss."""
        return bool(self.text_loss_mask.any() or self.regression_mask.any())


@dataclasses.dataclass(frozen=True)
class TokenSpan:
    """A run of tokens; `loss` tells whether they count as labels."""

    ids: list[int]
    loss: bool = True


@dataclasses.dataclass(frozen=True)
class _Picture:
    data: bytes | np.ndarray
    loss: bool = True  # by regression, and of its [IMG] with predict_boi


_Piece = TokenSpan | _Picture


def build_sequence(
    document: Document, *, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator
) -> TokenSequence:
    """Lays a document out. Videos must be frames already; `rng` decides the order and the place of a cut.

    Layouts, with N = 1 and words for text tokens:

        PAIR        <s> [IMG] <image> [/IMG] a cat </s>      or  <s> a cat [IMG] <image> [/IMG] </s>
        VIDEO       as a PAIR, with one image for each frame
        PAGE        <s> one sentence [IMG] <image> [/IMG] another ... </s>
        STORYBOARD  <s> [IMG] <image> [/IMG] first subtitle [IMG] <image> [/IMG] second subtitle ... </s>
        CHAT        <s> system [USER] : question [IMG] <image> [/IMG] [ASSISTANT] : answer </s> [USER] : ...
                    where only "answer </s>" counts in the text loss

    What is too long is cut, never within an image: a PAIR or VIDEO loses the end of its text; a PAGE or STORYBOARD
    keeps a stretch that starts at a random segment; a CHAT keeps its first whole turns, or the
    beginning of the first where not even that fits. But for whole turns, what was cut does not end in `</s>`.

    Raises:
      DecodeError: the document has no text and no image (there is nothing to lay out).
    """
    lay_out = {
        Layout.PAIR: _pair,
        Layout.VIDEO: _pair,
        Layout.PAGE: _page,
        Layout.STORYBOARD: _page,
        Layout.CHAT: _chat,
    }[document.layout]
    pieces, whole = lay_out(document, config, tokenizer, rng)
    if not any(isinstance(piece, _Picture) or piece.ids for piece in pieces):
        raise DecodeError("the document has neither text nor images")
    return _assemble(pieces, whole=whole, ends=document.layout is not Layout.CHAT, config=config, tokenizer=tokenizer)


def _assemble(
    pieces: Iterable[_Piece], *, whole: bool, ends: bool, config: SequenceConfig, tokenizer: Tokenizer
) -> TokenSequence:
    n = config.num_image_tokens
    run = [tokenizer.boi_id, *[tokenizer.image_token_id] * n, tokenizer.eoi_id]
    tokens, label, regression, images = [tokenizer.bos_id], [0], [0], []
    words_before = False
    for piece in pieces:
        if isinstance(piece, TokenSpan):
            tokens += piece.ids
            label += [int(piece.loss)] * len(piece.ids)
            regression += [0] * len(piece.ids)
            words_before = words_before or bool(piece.ids)
        else:
            regress = piece.loss and (
                config.regress is Regress.ALL or (config.regress is Regress.AFTER_TEXT and words_before)
            )
            tokens += run
            label += [int(config.predict_boi and piece.loss)] + [0] * (n + 1)
            regression += [int(regress)] * (n + 1) + [0]
            images.append(piece.data)
    if ends and whole:
        tokens.append(tokenizer.eos_id)
        label.append(1)
        regression.append(0)
    text_loss_mask = np.zeros(len(tokens), np.float32)
    text_loss_mask[:-1] = label[1:]
    return TokenSequence(
        tokens=np.asarray(tokens, np.int32),
        text_loss_mask=text_loss_mask,
        regression_mask=np.asarray(regression, np.float32),
        images=tuple(images),
    )


def _pictures(segment: doc.Segment, config: SequenceConfig, *, loss: bool = True) -> list[_Picture]:
    if isinstance(segment, doc.Image):
        return [_Picture(segment.data, loss)]
    assert isinstance(segment, doc.Video)
    if isinstance(segment.data, bytes):
        raise UserError("A video must be frames before it is laid out; see emu_jax.data.video.take_frames.")
    return [_Picture(frame.data, loss) for frame in segment.data]


def _words(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text.strip()) if text.strip() else []


def _pair(
    document: Document, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[list[_Piece], bool]:
    ids = [i for s in document.segments if isinstance(s, doc.Text) for i in _words(s.text, tokenizer)]
    pictures = [p for s in document.segments if not isinstance(s, doc.Text) for p in _pictures(s, config)]
    # The loader gives at most `frames` of them; a row that holds fewer gets them evenly spread.
    fit = min(config.max_images, (config.length - 2) // config.image_length)
    if len(pictures) > fit:
        pictures = [pictures[i] for i in np.linspace(0, len(pictures) - 1, fit).round().astype(int)]
    room = config.length - 2 - len(pictures) * config.image_length
    whole = len(ids) <= room
    words = TokenSpan(ids[:room])
    if rng.random() < config.image_first:
        return [*pictures, words], whole
    return [words, *pictures], True  # the text ends early, the document does not


def _page(
    document: Document, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[list[_Piece], bool]:
    segments = list(document.segments)
    if document.layout is Layout.PAGE and config.page_image_first < 1:
        i = 0
        while i + 1 < len(segments):
            if isinstance(segments[i], doc.Image) and isinstance(segments[i + 1], doc.Text):
                if rng.random() >= config.page_image_first:
                    segments[i], segments[i + 1] = segments[i + 1], segments[i]
                i += 1
            i += 1
    pieces: list[_Piece] = []
    for segment in segments:
        if isinstance(segment, doc.Text):
            ids = _words(segment.text, tokenizer)
            pieces += [TokenSpan(ids)] if ids else []
        else:
            pieces += _pictures(segment, config)
    sizes = [len(p.ids) if isinstance(p, TokenSpan) else config.image_length for p in pieces]
    if sum(sizes) > config.length - 2:
        # Any start after which a whole row still follows, so that no start wastes room.
        after = np.cumsum(sizes[::-1])[::-1]
        starts = np.flatnonzero(after >= config.length - 2)
        pieces = pieces[int(rng.choice(starts)) :]
    return _cut(pieces, config)


def _cut(pieces: Sequence[_Piece], config: SequenceConfig) -> tuple[list[_Piece], bool]:
    """The first pieces that fit with `<s>` and `</s>`, and whether all did: text is cut anywhere, an image nowhere."""
    kept: list[_Piece] = []
    room, images = config.length - 2, 0
    for piece in pieces:
        if isinstance(piece, TokenSpan):
            if len(piece.ids) > room:
                return [*kept, TokenSpan(piece.ids[:room], piece.loss)], False
            room -= len(piece.ids)
        else:
            if config.image_length > room or images == config.max_images:
                return kept, False
            room -= config.image_length
            images += 1
        kept.append(piece)
    return kept, True


def _chat(
    document: Document, config: SequenceConfig, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[list[_Piece], bool]:
    del rng  # a chat has one order
    pieces: list[_Piece] = _system(document, config, tokenizer)
    turns: list[tuple[Role, list[doc.Segment]]] = []
    for segment in document.segments:
        role = segment.role or Role.USER
        if role is Role.SYSTEM:
            continue
        if not turns or turns[-1][0] is not role:
            turns.append((role, []))
        turns[-1][1].append(segment)
    for role, segments in turns:
        pieces += _turn(role, segments, config, tokenizer)
    kept, whole = _cut(pieces, config)
    if not whole:
        ends = [i for i, piece in enumerate(kept) if isinstance(piece, TokenSpan) and piece.ids == [tokenizer.eos_id]]
        kept = kept[: ends[-1] + 1] if ends else kept
    return kept, whole


def _system(document: Document, config: SequenceConfig, tokenizer: Tokenizer) -> list[_Piece]:
    texts = [s.text for s in document.segments if isinstance(s, doc.Text) and s.role is Role.SYSTEM]
    if not texts and config.system_message is SystemMessage.RELEASE:
        if any(isinstance(s, doc.Video) for s in document.segments):
            texts = [SYSTEM_VIDEO]
        elif any(isinstance(s, doc.Image) for s in document.segments):
            texts = [SYSTEM_IMAGE]
    text = " ".join(texts).strip()
    if not text:
        return []
    # Only the released messages are trusted with special tokens: the rest is a stranger's text.
    return [TokenSpan(tokenizer.encode(text, special_tokens=text in (SYSTEM_IMAGE, SYSTEM_VIDEO)), loss=False)]


def _turn(role: Role, segments: list[doc.Segment], config: SequenceConfig, tokenizer: Tokenizer) -> list[_Piece]:
    """`[USER]: ...` or `[ASSISTANT]: ...</s>`; only the assistant's words count, the ":" not.

    A tokenizer without these special tokens (one for pretraining) gets the same as plain text.
    """
    answers = role is Role.ASSISTANT
    special = tokenizer.assistant_id if answers else tokenizer.user_id
    opening = ":" if special is not None else ("[ASSISTANT]:" if answers else "[USER]:")
    opening_ids = tokenizer.encode(opening)
    pieces: list[_Piece] = [TokenSpan([] if special is None else [special], loss=False)]
    open_text = True
    texts: list[str] = []

    def flush() -> None:
        nonlocal open_text
        text = " ".join(texts)
        texts.clear()
        if not open_text:
            pieces.append(TokenSpan(tokenizer.encode(text) if text else [], loss=answers))
            return
        open_text = False
        ids = tokenizer.encode(f"{opening} {text}") if text else opening_ids
        if ids[: len(opening_ids)] != opening_ids:  # the opening melted into the text
            ids = opening_ids + tokenizer.encode(text)
        pieces.append(TokenSpan(opening_ids, loss=False))
        pieces.append(TokenSpan(ids[len(opening_ids) :], loss=answers))

    for segment in segments:
        if isinstance(segment, doc.Text):
            texts += [segment.text.strip()] if segment.text.strip() else []
        else:
            if open_text or texts:
                flush()
            pieces += _pictures(segment, config, loss=answers)
    if open_text or texts:
        flush()
    if answers:
        pieces.append(TokenSpan([tokenizer.eos_id]))
    return pieces
