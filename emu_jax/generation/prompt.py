"""Prompts: text, images and videos in any order become tokens and pixels, and several of them one left-padded batch."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from emu_jax.data.images import DecodeError, normalize, preprocess
from emu_jax.data.tokenizer import BOI, EOI, IMAGE_TOKEN, Tokenizer
from emu_jax.data.video import take_frames
from emu_jax.errors import UserError
from emu_jax.generation.buckets import bucket, power_of_two
from emu_jax.typing import Array, Bool, Float, Int

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"))
VIDEO_SUFFIXES = frozenset((".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"))
VIDEO_FRAMES = 8  # uniform frames that stand for a video, as in the release


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Ids as they are, between texts: how a program says `[USER]` where text is only text."""

    ids: tuple[int, ...]


class PlainText(str):
    """Text that is never taken as a file's name: for what others than the user of this machine have typed."""


Part = str | os.PathLike | PIL.Image.Image | np.ndarray | jax.Array | Tokens


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Tokens `[L]` int32, `<s>` first, and an image `[S, S, 3]` (normalised float32) for each run of `<image>`."""

    tokens: np.ndarray
    images: tuple[np.ndarray, ...] = ()


def build_prompt(
    parts: Iterable[Part] | Part,
    *,
    tokenizer: Tokenizer,
    num_image_tokens: int,
    image_size: int,
    special_tokens: bool = False,
    open_image: bool = False,
) -> Prompt:
    """Lays out a prompt as the release does: `<s>`, then texts and images; neighbouring texts are one text.

    An image is `[IMG]`, N times `<image>`, `[/IMG]`, a video 8 of these; white space beside them goes. N = 2:

        ["A cat", photo, ". Then "]  ->  <s> ▁A ▁cat [IMG] <image> <image> [/IMG] ▁. ▁Then

    Args:
      parts: strings, PIL images, paths, arrays (uint8 pixels, or float32 taken as resized and normalised already).
      special_tokens: `[IMG]`, `</s>` and the like typed in a text are the special tokens; otherwise they are text.
      open_image: ends the prompt with `[IMG]`, after which the model predicts an image's embeddings.

    Raises:
      UserError: a file that is missing or cannot be read, an array of another kind, `<image>` as a special token.
    """
    opened = (tokenizer.boi_id, *[tokenizer.image_token_id] * num_image_tokens, tokenizer.eoi_id)
    tokens, images = [tokenizer.bos_id], []
    after_special = False
    pieces = _joined(parts, image_size)
    for i, piece in enumerate(pieces):
        if isinstance(piece, str):
            before_special = i + 1 < len(pieces) or open_image
            text = piece.lstrip() if after_special else piece
            text = text.rstrip() if before_special else text
            tokens += _encode(text, tokenizer, special_tokens)
            after_special = False
            continue
        after_special = True
        if isinstance(piece, Tokens):
            tokens += piece.ids
        else:
            tokens += opened
            images.append(piece)
    if open_image:
        tokens.append(tokenizer.boi_id)
    return Prompt(np.asarray(tokens, np.int32), tuple(images))


@flax.struct.dataclass
class PromptBatch:
    """Prompts as rows, left-padded so that all end in the last place.

        tokens    . . <s> a   cat          is_token  0 0 1 1 1
                  <s> a   red cat .                  1 1 1 1 1

    visual_embeddings: of all images of all rows, in order; None where there is none.
    slots: which of them are each row's.
    """

    tokens: Int[Array, "B L"]
    is_token: Bool[Array, "B L"]
    visual_embeddings: Float[Array, "n Q D"] | None
    slots: Int[Array, "B I"] | None


def pad_prompts(prompts: Sequence[Prompt], *, pad_id: int, max_length: int) -> PromptBatch:
    """One batch without its visual embeddings; rows, length and images are rounded up to buckets."""
    rows = power_of_two(len(prompts))
    length = bucket(max(len(prompt.tokens) for prompt in prompts), largest=max_length)
    blank: list[np.ndarray] = [np.zeros(0, np.int32)] * (rows - len(prompts))
    tokens, is_token = pad_rows([*(prompt.tokens for prompt in prompts), *blank], length=length, pad_id=pad_id)
    slots = np.zeros((rows, power_of_two(max(len(prompt.images) for prompt in prompts))), np.int32)
    first = 0
    for row, prompt in enumerate(prompts):
        slots[row, : len(prompt.images)] = first + np.arange(len(prompt.images))
        first += len(prompt.images)
    return PromptBatch(
        tokens=jnp.asarray(tokens),
        is_token=jnp.asarray(is_token),
        visual_embeddings=None,
        slots=jnp.asarray(slots) if first else None,
    )


def pad_rows(prompts: Sequence[np.ndarray], *, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token rows of their own lengths as `tokens` and `is_token` `[B, length]`, left-padded."""
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    is_token = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        is_token[row, length - len(prompt) :] = True
    return tokens, is_token


def only_image(prompt: Prompt, *, num_image_tokens: int) -> np.ndarray:
    """The image of a prompt that is one image; with text or more images it raises UserError."""
    if len(prompt.images) != 1 or len(prompt.tokens) != num_image_tokens + 3:
        raise UserError("Give one image, and nothing else, to autoencode.")
    return prompt.images[0]


def load_images(part: Part, image_size: int) -> list[np.ndarray]:
    """The normalised images `[S, S, 3]` of an image or (8 of them) a video."""
    if isinstance(part, np.ndarray | jax.Array):
        return [_from_array(np.asarray(part), image_size)]
    if isinstance(part, PIL.Image.Image):
        return [_normalized(part, image_size)]
    if not isinstance(part, str | os.PathLike):
        raise UserError(f"A prompt takes text, paths, PIL images and arrays, not {type(part).__name__}.")
    path = Path(part)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return [_normalized(frame, image_size) for frame in take_frames(path, frames=VIDEO_FRAMES, size=image_size)]
        return [_normalized(path, image_size)]
    except DecodeError as error:
        raise UserError(f"{path}: {error}.") from None


def is_file_name(text: str) -> bool:
    """Whether a string in a prompt is meant as a file: it ends like one and either is there or is a single word."""
    stripped = text.strip()
    if isinstance(text, PlainText):
        return False
    if "\n" in stripped or Path(stripped).suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        return False
    return " " not in stripped or Path(stripped).is_file()


def _joined(parts: Iterable[Part] | Part, image_size: int) -> list[str | Tokens | np.ndarray]:
    """Texts joined, files read."""
    if isinstance(parts, Part):
        parts = [parts]
    pieces: list[str | Tokens | np.ndarray] = []
    for part in parts:
        if isinstance(part, Tokens):
            pieces.append(part)
        elif not isinstance(part, str) or is_file_name(part):
            pieces += load_images(part.strip() if isinstance(part, str) else part, image_size)
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += part
        else:
            pieces.append(part)
    return pieces


def _encode(text: str, tokenizer: Tokenizer, special_tokens: bool) -> list[int]:
    if not text:
        return []
    if special_tokens and IMAGE_TOKEN in text:
        raise UserError(f"{IMAGE_TOKEN} in a text has no image; pass the image itself ({BOI} and {EOI} come with it).")
    return tokenizer.encode(text, special_tokens=special_tokens)


def _normalized(image: PIL.Image.Image | Path | np.ndarray, size: int) -> np.ndarray:
    return normalize(np.asarray(preprocess(image, size)))


def _from_array(array: np.ndarray, size: int) -> np.ndarray:
    if array.dtype == np.uint8:
        try:
            return _normalized(array, size)
        except DecodeError as error:
            raise UserError(f"{error}.") from None
    if not np.issubdtype(array.dtype, np.floating) or array.shape != (size, size, 3):
        raise UserError(
            f"An image array is uint8 [H, W, 3], or float32 [{size}, {size}, 3] already normalised, "
            f"not {array.dtype} {list(array.shape)}."
        )
    return np.asarray(array, np.float32)
