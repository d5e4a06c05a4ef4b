"""Convert prompts of text, images and videos in any order to tokens and pixels, and several prompts to one batch."""

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
from emu_jax.data.media_paths import Image, Video, is_video, named_file
from emu_jax.data.tokenizer import BOI, EOI, IMAGE_TOKEN, Tokenizer
from emu_jax.data.video import take_frames
from emu_jax.errors import UserError
from emu_jax.generation.buckets import bucket, power_of_two
from emu_jax.typing import Array, Bool, Float, Int

VIDEO_FRAMES = 8  # evenly spaced frames of a video, as in the release


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids between texts: the way for a program to add special tokens such as `[USER]`."""

    ids: tuple[int, ...]


Part = str | os.PathLike | Image | Video | PIL.Image.Image | np.ndarray | jax.Array | Tokens


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Tokens int32 `[L]`, `<s>` first, and a normalized float32 image `[S, S, 3]` for each run of `<image>`."""

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
    """Build a prompt as in the release: `<s>`, then texts and images. Adjacent texts are joined.

    An image is `[IMG]`, N times `<image>`, `[/IMG]`; a video is 8 images. White space next to images is removed. N = 2:

        ["A cat", photo, ". Then "]  ->  <s> ▁A ▁cat [IMG] <image> <image> [/IMG] ▁. ▁Then

    Args:
      parts: strings, PIL images, paths, arrays (uint8 pixels, or float32 that is already resized and normalized).
      special_tokens: parse `[IMG]`, `</s>` and the like in a text as special tokens; otherwise they are text.
      open_image: end the prompt with `[IMG]`, after which the model predicts the embeddings of an image.

    Raises:
      UserError: a file is missing or cannot be read, an array has another dtype or shape, or `<image>` occurs in a text
        with `special_tokens`.
    """
    image_tokens = (tokenizer.boi_id, *[tokenizer.image_token_id] * num_image_tokens, tokenizer.eoi_id)
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
            tokens += image_tokens
            images.append(piece)
    if open_image:
        tokens.append(tokenizer.boi_id)
    return Prompt(np.asarray(tokens, np.int32), tuple(images))


@flax.struct.dataclass
class PromptBatch:
    """Prompts as rows, left-padded so that all of them end at the last position.

        tokens    . . <s> a   cat          is_token  0 0 1 1 1
                  <s> a   red cat .                  1 1 1 1 1

    visual_embeddings: of all images of all rows, in order; None without images.
    slots: the indices of each row's images in `visual_embeddings`.
    """

    tokens: Int[Array, "B L"]
    is_token: Bool[Array, "B L"]
    visual_embeddings: Float[Array, "n Q D"] | None
    slots: Int[Array, "B I"] | None


def pad_prompts(prompts: Sequence[Prompt], *, pad_id: int, max_length: int) -> PromptBatch:
    """Return a batch without its visual embeddings. Rows, length and images are rounded up to buckets."""
    rows = power_of_two(len(prompts))
    length = bucket(max(len(prompt.tokens) for prompt in prompts), largest=max_length)
    empty: list[np.ndarray] = [np.zeros(0, np.int32)] * (rows - len(prompts))
    tokens, is_token = pad_rows([*(prompt.tokens for prompt in prompts), *empty], length=length, pad_id=pad_id)
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
    """Left-pad rows of tokens to `tokens` and `is_token` `[B, length]`."""
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    is_token = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        is_token[row, length - len(prompt) :] = True
    return tokens, is_token


def only_image(prompt: Prompt, *, num_image_tokens: int) -> np.ndarray:
    """Return the image of a prompt that is one image; raise UserError for text or several images."""
    if len(prompt.images) != 1 or len(prompt.tokens) != num_image_tokens + 3:
        raise UserError("Autoencoding requires a prompt of one image, without text.")
    return prompt.images[0]


def load_images(part: Part, image_size: int) -> list[np.ndarray]:
    """Return the normalized images `[S, S, 3]` of an image (one) or a video (8)."""
    if isinstance(part, np.ndarray | jax.Array):
        return [_from_array(np.asarray(part), image_size)]
    if isinstance(part, PIL.Image.Image):
        return [_normalized(part, image_size)]
    if not isinstance(part, str | os.PathLike | Image | Video):
        raise UserError(f"A prompt consists of text, paths, PIL images and arrays, not {type(part).__name__}.")
    path = Path(part.path if isinstance(part, Image | Video) else part)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        if isinstance(part, Video) or (not isinstance(part, Image) and is_video(path)):
            return [_normalized(frame, image_size) for frame in take_frames(path, frames=VIDEO_FRAMES, size=image_size)]
        return [_normalized(path, image_size)]
    except DecodeError as error:
        raise UserError(f"{path}: {error}.") from None


def _joined(parts: Iterable[Part] | Part, image_size: int) -> list[str | Tokens | np.ndarray]:
    """Join adjacent texts and read files."""
    if isinstance(parts, Part):
        parts = [parts]
    pieces: list[str | Tokens | np.ndarray] = []
    for part in parts:
        if isinstance(part, Tokens):
            pieces.append(part)
        elif not isinstance(part, str) or named_file(part):
            pieces += load_images(part, image_size)
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += part
        else:
            pieces.append(part)
    return pieces


def _encode(text: str, tokenizer: Tokenizer, special_tokens: bool) -> list[int]:
    if not text:
        return []
    if special_tokens and IMAGE_TOKEN in text:
        raise UserError(f"{IMAGE_TOKEN} in a text has no image; pass the image itself, which adds {BOI} and {EOI}.")
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
            f"An image array must be uint8 [H, W, 3], or normalized float32 [{size}, {size}, 3], "
            f"not {array.dtype} {list(array.shape)}."
        )
    return np.asarray(array, np.float32)
