"""SentencePiece text tokens and the special tokens of Emu.

The special tokens have the ids after the n pieces of the SentencePiece model (n = 32000 for LLaMA), the same ids as in
the release:

    n        n+1    n+2     n+3      n+4     n+5
    [PAD]    [IMG]  [/IMG]  <image>  [USER]  [ASSISTANT]        the last two only in an instruction-tuned model
"""

import functools
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from emu_jax.errors import UserError
from emu_jax.io.files import write_bytes
from emu_jax.io.local_copy import local_copy

PAD, BOI, EOI, IMAGE_TOKEN, USER, ASSISTANT = "[PAD]", "[IMG]", "[/IMG]", "<image>", "[USER]", "[ASSISTANT]"


class Tokenizer:
    """Convert text to token ids and back.

    Attributes:
      unk_id, bos_id, eos_id: ids of `<unk> <s> </s>`.
      pad_id, boi_id, eoi_id, image_token_id: ids of `[PAD] [IMG] [/IMG] <image>`.
      user_id, assistant_id: ids of `[USER]` and `[ASSISTANT]`, None unless `instruct`.
      vocab_size: number of ids: n + 4, or n + 6 with `instruct`.
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
        """Read a SentencePiece `.model` file. Raises UserError if it cannot be read."""
        try:
            model = local_copy(path).read_bytes()
        except OSError as error:
            raise UserError(
                f"No tokenizer model at {path} ({error.strerror}); name a SentencePiece .model file."
            ) from None
        try:
            return cls(model, instruct=instruct)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write the SentencePiece model file that `load` reads."""
        write_bytes(path, self._model)

    @property
    def role_sources(self) -> dict[int, tuple[int, ...]]:
        """The ids of `[USER]` and `[ASSISTANT]`, each with the ids of its word; empty unless `instruct`."""
        if self.user_id is None or self.assistant_id is None:
            return {}
        words = {self.user_id: "user", self.assistant_id: "assistant"}
        return {token: tuple(self._pieces.encode(word)) for token, word in words.items()}

    def __reduce__(self):  # pickled for worker processes
        return functools.partial(Tokenizer, instruct=self.instruct), (self._model,)

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`, without `<s>`.

        With `special_tokens`, the text is split at `[IMG]`, `</s>` and the other special tokens, white space next to
        them is removed, and each piece between them is encoded separately, with its own leading "▁". This is the rule
        of Hugging Face's slow LLaMA tokenizer, with which the released model was trained. Without it, such strings are
        ordinary text; use `special_tokens` only on trusted text.

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
        """Return the text of `ids`; special tokens and ids outside the vocabulary are skipped.

        Up to two leading spaces are removed: the one that SentencePiece adds, and one more as in Hugging Face.
        """
        text_ids = [int(i) for i in ids if 0 <= i < self.pad_id and i not in self._special_ids]
        pieces = [self._pieces.id_to_piece(i) for i in text_ids]
        if pieces and pieces[0].startswith("▁"):
            pieces[0] = pieces[0][1:]
        return self._pieces.decode_pieces([piece for piece in pieces if piece])

    def piece(self, token: int) -> str:
        """Return the written form of one id: "▁cat", "<0x0A>", "[IMG]"."""
        names = {number: name for name, number in self._special.items()}
        return names[token] if token in names else self._pieces.id_to_piece(token)

    @functools.cached_property
    def _splitter(self) -> re.Pattern:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(re.escape(s) for s in longest_first) + ")")


def fitting_tokenizer(path: Path, *, vocab_size: int) -> Tokenizer:
    """Load the tokenizer of a model with `vocab_size` ids, with the special tokens of a pretrained or a tuned model.

    Raises:
      UserError: neither set of special tokens results in `vocab_size` ids.
    """
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size == vocab_size:
        return tokenizer
    tuned = Tokenizer.load(path, instruct=True)
    if tuned.vocab_size == vocab_size:
        return tuned
    raise UserError(
        f"The tokenizer {path} has {tokenizer.vocab_size} ids ({tuned.vocab_size} for an instruction-tuned model), "
        f"but the model has {vocab_size}; pass the model's tokenizer with --tokenizer (or tokenizer=)."
    )


def piece_count(path: Path) -> int:
    """Return the number of pieces of a SentencePiece model, without Emu's special tokens."""
    return Tokenizer.load(path).pad_id


def train_tokenizer(lines: Iterable[str], path: str | os.PathLike, *, vocab_size: int) -> Tokenizer:
    """Train a byte-pair model with LLaMA's settings on `lines`, write it to `path` and return it.

    `vocab_size` counts the pieces without Emu's special tokens; if the text has too little variety for that many, the
    vocabulary is as large as the text allows. It holds at least 3 control pieces, 256 bytes and all characters of the
    text.
    """
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UserError("There is no text to train a tokenizer on.")
    try:
        model = _train(texts, vocab_size=vocab_size)
    except RuntimeError as error:
        possible = re.search(r"<= (\d+)", str(error))  # SentencePiece's "Please set it to a value <= 353"
        if possible is None:
            raise UserError(f"No tokenizer of {vocab_size} pieces can be trained on this text: {error}") from None
        model = _train(texts, vocab_size=int(possible.group(1)))
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
