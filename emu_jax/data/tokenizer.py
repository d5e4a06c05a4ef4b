"""SentencePiece text tokens and the special tokens of Emu.

The special tokens take the ids after the n pieces of the model (n = 32000 for LLaMA), so that the rows of the release
and ours mean the same:

    n        n+1    n+2     n+3      n+4     n+5
    [PAD]    [IMG]  [/IMG]  <image>  [USER]  [ASSISTANT]        the last two only for an instruction-tuned model
"""

import functools
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from emu_jax.errors import UserError

PAD, BOI, EOI, IMAGE_TOKEN, USER, ASSISTANT = "[PAD]", "[IMG]", "[/IMG]", "<image>", "[USER]", "[ASSISTANT]"


class Tokenizer:
    """Text to ids and back.

    Attributes:
      unk_id, bos_id, eos_id: ids of `<unk> <s> </s>`.
      pad_id, boi_id, eoi_id, image_token_id: ids of `[PAD] [IMG] [/IMG] <image>`.
      user_id, assistant_id: ids of `[USER]` and `[ASSISTANT]`, None unless `instruct`.
      vocab_size: ids that exist: n + 4, or n + 6 with `instruct`.
    """

    def __init__(self, model: bytes, *, instruct: bool = False):
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"These {len(model)} bytes are not a SentencePiece model ({error}).") from None
        self._model = model
        self.instruct = instruct
        n = self._pieces.vocab_size()
        self.unk_id: int = self._pieces.unk_id()
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise UserError("The SentencePiece model lacks <s> or </s>; train it with bos_id=1 and eos_id=2.")
        self.pad_id, self.boi_id, self.eoi_id, self.image_token_id = n, n + 1, n + 2, n + 3
        self.user_id: int | None = n + 4 if instruct else None
        self.assistant_id: int | None = n + 5 if instruct else None
        self.vocab_size = n + 6 if instruct else n + 4
        self._special = {
            "<unk>": self.unk_id, "<s>": self.bos_id, "</s>": self.eos_id,
            PAD: self.pad_id, BOI: self.boi_id, EOI: self.eoi_id, IMAGE_TOKEN: self.image_token_id,
        }  # fmt: skip
        if instruct:
            self._special |= {USER: n + 4, ASSISTANT: n + 5}
        self._special_ids = frozenset(self._special.values())

    @classmethod
    def load(cls, path: str | os.PathLike, *, instruct: bool = False) -> "Tokenizer":
        """Reads a SentencePiece `.model` file. Raises UserError where there is none."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise UserError(
                f"No tokenizer model at {path} ({error.strerror}); give a SentencePiece .model file."
            ) from None
        try:
            return cls(model, instruct=instruct)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes the SentencePiece model, as `load` reads it."""
        temporary = Path(f"{path}.tmp")
        temporary.write_bytes(self._model)
        temporary.replace(path)

    def __reduce__(self):  # worker processes get a copy
        return functools.partial(Tokenizer, instruct=self.instruct), (self._model,)

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of `text`, without `<s>`.

        With `special_tokens`, the text is split at `[IMG]`, `</s>` and the like, white space beside them goes, and each
        piece between is encoded by itself, so with its own leading "▁": the rule of the slow LLaMA tokenizer of Hugging
        Face that the released model was trained with. Otherwise such strings are text like any other; so use it only on
        text that is not a stranger's.

        With the LLaMA model:
          encode("a cat")                                      -> [263, 6635]
          encode("[USER]: hi </s>", special_tokens=True)       -> [32004, 584, 7251, 2]    (with instruct)
          encode("</s>")                                       -> [1533, 29879, 29958]
        """
        if not special_tokens:
            return self._pieces.encode(text)
        ids: list[int] = []
        parts = self._splitter.split(text)  # text, special, text, special, ..., text
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._special[part])
                continue
            if i > 0:
                part = part.lstrip()
            if i + 1 < len(parts):
                part = part.rstrip()
            if part:
                ids.extend(self._pieces.encode(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens, and ids past the vocabulary, leave no trace.

        Up to two leading spaces go: the one SentencePiece adds, and one more that Hugging Face takes.
        """
        kept = [int(i) for i in ids if 0 <= i < self.pad_id and i not in self._special_ids]
        pieces = [self._pieces.id_to_piece(i) for i in kept]
        if pieces and pieces[0].startswith("▁"):
            pieces[0] = pieces[0][1:]
        return self._pieces.decode_pieces([piece for piece in pieces if piece])

    def piece(self, token: int) -> str:
        """How one id is written: "▁cat", "<0x0A>", "[IMG]"."""
        names = {number: name for name, number in self._special.items()}
        return names[token] if token in names else self._pieces.id_to_piece(token)

    @functools.cached_property
    def _splitter(self) -> re.Pattern:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(re.escape(s) for s in longest_first) + ")")


def fitting_tokenizer(path: Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer with the special tokens of a model with `vocab_size` ids: of pretraining, or of a tuned one.

    Raises:
      UserError: it can be neither.
    """
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size == vocab_size:
        return tokenizer
    tuned = Tokenizer.load(path, instruct=True)
    if tuned.vocab_size == vocab_size:
        return tuned
    raise UserError(
        f"The tokenizer {path} makes {tokenizer.vocab_size} ids ({tuned.vocab_size} for an instruction-tuned model), "
        f"but the model has {vocab_size}; name the model's own with --tokenizer (or tokenizer=)."
    )


def train_tokenizer(lines: Iterable[str], path: str | os.PathLike, *, vocab_size: int) -> Tokenizer:
    """Trains a byte-pair model with LLaMA's settings on `lines`, writes it to `path` and gives it back.

    `vocab_size` counts the pieces (the special tokens come on top); where the text has too little variety for so many,
    the model is as large as the text allows. Needs at least 3 control pieces, 256 bytes and the characters of the text.
    """
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UserError("There is no text to train a tokenizer on.")
    try:
        model = _train(texts, vocab_size=vocab_size)
    except RuntimeError as error:
        attainable = re.search(r"<= (\d+)", str(error))  # SentencePiece's "Please set it to a value <= 353"
        if attainable is None:
            raise UserError(f"No tokenizer of {vocab_size} pieces can be trained on this text: {error}") from None
        model = _train(texts, vocab_size=int(attainable.group(1)))
    tokenizer = Tokenizer(model)
    tokenizer.save(path)
    return tokenizer


def _train(texts: list[str], *, vocab_size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
