"""Turn text and images into the inputs of an Emu, as its release does."""

import functools
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import tokenizers
import torch
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PushToHubMixin, cached_file

FILE = "processor_config.json"
BOI, EOI, IMAGE, USER, ASSISTANT = "[IMG]", "[/IMG]", "<image>", "[USER]", "[ASSISTANT]"
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)  # of OpenAI's CLIP
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
SYSTEM_IMAGE = (  # of Emu-I, as released
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image after I provide "
    "it to you. Please answer my questions based on the given image."
)

Image = PIL.Image.Image | np.ndarray | bytes | str | os.PathLike


class EmuProcessor(PushToHubMixin):
    """The tokenizer, and the size and number of embeddings of an image."""

    _auto_class = "AutoProcessor"  # `save_pretrained` writes the code too

    def __init__(self, tokenizer: Any, *, image_size: int, num_image_tokens: int) -> None:
        self.tokenizer, self.image_size, self.num_image_tokens = tokenizer, image_size, num_image_tokens

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **kwargs: Any) -> "EmuProcessor":
        """Load from a folder or from the Hugging Face Hub."""
        kwargs.pop("trust_remote_code", None)
        hub = {name: kwargs[name] for name in ("cache_dir", "revision", "token", "subfolder") if name in kwargs}
        values = json.loads(Path(cached_file(path, FILE, **hub)).read_text(encoding="utf-8"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **hub)
        return cls(tokenizer, image_size=values["image_size"], num_image_tokens=values["num_image_tokens"])

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Make `save_pretrained` write this file too."""
        cls._auto_class = auto_class

    def save_pretrained(self, folder: str | os.PathLike, **kwargs: Any) -> None:
        """Write the folder that `from_pretrained` reads."""
        os.makedirs(folder, exist_ok=True)
        values: dict[str, Any] = {
            "processor_class": "EmuProcessor",
            "auto_map": {"AutoProcessor": "processing_emu.EmuProcessor"},
            "image_size": self.image_size,
            "num_image_tokens": self.num_image_tokens,
        }
        self.tokenizer.save_pretrained(folder)
        custom_object_save(self, folder)
        Path(folder, FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def __call__(
        self,
        text: str | Sequence[str] = "",
        images: Image | Sequence[Image] = (),
        *,
        open_image: bool = False,
        return_tensors: str = "pt",
        padding: bool = True,
    ) -> BatchFeature:
        """Return `input_ids`, `attention_mask` and `pixel_values` (with images) of one or more prompts.

        Args:
          text: trusted text, in which `<image>` stands for the next image and special tokens are parsed.
          images: of all prompts, in order: PIL images, uint8 arrays `[H, W, 3]`, encoded bytes or paths.
          open_image: end each prompt with `[IMG]`, for `generate_embeddings`.
        """
        if return_tensors != "pt" or not padding:
            raise ValueError("EmuProcessor returns padded PyTorch tensors only.")
        texts = [text] if isinstance(text, str) else list(text)
        if isinstance(images, PIL.Image.Image | np.ndarray | bytes | str | os.PathLike):
            images = [images]
        count = sum(one.count(IMAGE) for one in texts)
        if count != len(images):
            raise ValueError(f"There are {count} {IMAGE} in the text, but {len(images)} images.")
        return self._batch([self._prompt(one, open_image=open_image) for one in texts], images)

    def encode_chat(self, messages: Sequence[dict[str, Any]], *, system: str | None = None) -> BatchFeature:
        """Return the inputs of `system [USER]: ... [ASSISTANT]: ...</s> ... [ASSISTANT]:`, which Emu-I continues.

        The texts of the messages are plain text: `[IMG]` or `</s>` in them are not special tokens.

        Args:
          messages: `{"role": "user", "content": ...}` and `{"role": "assistant", ...}` in turns. The content is a text
            or a list of parts: `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`.
          system: trusted text. Default: the released message if there is an image, otherwise none.
        """
        turns = [(message["role"], _content(message["content"])) for message in messages]
        images = [part["image"] for _, parts in turns for part in parts if part["type"] == "image"]
        if system is None:
            system = SYSTEM_IMAGE if images else ""
        ids = [self.tokenizer.bos_token_id, *self._special_text(system.strip())]
        for role, parts in turns:
            ids += self._turn(role, parts)
        return self._batch([ids + self._opening("assistant", "")], images)

    def decode(self, ids: Any) -> str:
        """Return the text of one row of ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def batch_decode(self, rows: Iterable[Any]) -> list[str]:
        """Return the texts of rows of ids, without special tokens."""
        return [self.decode(row) for row in rows]

    def pixels(self, image: Image) -> torch.Tensor:
        """Return the normalized pixels `[3, S, S]` of an image, resized to `image_size` in both dimensions."""
        values = np.asarray(_resize(_rgb(image), self.image_size)).astype(np.float32) / np.float32(255)
        return torch.from_numpy(((values - MEAN) / STD).transpose(2, 0, 1).copy())

    def _prompt(self, text: str, *, open_image: bool) -> list[int]:
        ids, parts = [self.tokenizer.bos_token_id], text.split(IMAGE)
        for i, part in enumerate(parts):
            if i > 0:
                ids += self._image_ids
                part = part.lstrip()
            if i + 1 < len(parts) or open_image:
                part = part.rstrip()
            ids += self._special_text(part)
        return [*ids, self.tokenizer.convert_tokens_to_ids(BOI)] if open_image else ids

    def _turn(self, role: str, parts: Sequence[dict[str, Any]]) -> list[int]:
        """Return the ids of one turn. Consecutive texts are joined by a space."""
        if role not in ("user", "assistant"):
            raise ValueError(f"The role of a message is 'user' or 'assistant', not {role!r}.")
        runs: list[str | None] = [""]  # a text, and None for each image
        for part in parts:
            if part["type"] == "image":
                runs.append(None)
            elif runs[-1] is None:
                runs.append(part["text"].strip())
            else:
                runs[-1] = f"{runs[-1]} {part['text'].strip()}".strip()
        ids = self._opening(role, runs[0] or "")
        for run in runs[1:]:
            ids += self._image_ids if run is None else self._plain_text(run)
        return [*ids, self.tokenizer.eos_token_id] if role == "assistant" else ids

    def _opening(self, role: str, text: str) -> list[int]:
        """Return the ids of `[USER]: text` or `[ASSISTANT]: text`."""
        name = ASSISTANT if role == "assistant" else USER
        known = name in self.tokenizer.get_vocab()  # a pretrained model has neither; they are plain text then
        opening = ":" if known else f"{name}:"
        start = self._plain_text(opening)
        ids = self._plain_text(f"{opening} {text}") if text else start
        if ids[: len(start)] != start:  # the end of the opening was merged with the text
            ids = start + self._plain_text(text)
        return [self.tokenizer.convert_tokens_to_ids(name), *ids] if known else ids

    def _special_text(self, text: str) -> list[int]:
        """Return the ids of a trusted text, in which special tokens are parsed."""
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def _plain_text(self, text: str) -> list[int]:
        """Return the ids of a text in which `[IMG]` and the like are ordinary characters."""
        return self._plain.encode(text, add_special_tokens=False).ids if text else []

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The tokenizer without its special tokens."""
        values = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return tokenizers.Tokenizer.from_str(json.dumps(values | {"added_tokens": [], "post_processor": None}))

    @property
    def _image_ids(self) -> list[int]:
        first, last, image = map(self.tokenizer.convert_tokens_to_ids, (BOI, EOI, IMAGE))
        return [first, *[image] * self.num_image_tokens, last]

    def _batch(self, rows: Sequence[list[int]], images: Sequence[Image]) -> BatchFeature:
        """Pad the rows on the left."""
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        data = {"input_ids": ids, "attention_mask": mask}
        if len(images):
            data["pixel_values"] = torch.stack([self.pixels(image) for image in images])
        return BatchFeature(data)


def _content(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _rgb(image: Image) -> PIL.Image.Image:
    """Return an RGB image: EXIF rotation applied, transparency over white, 16-bit gray scaled to 8 bits."""
    if isinstance(image, np.ndarray):
        return PIL.Image.fromarray(image)
    if not isinstance(image, PIL.Image.Image):
        image = PIL.Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return PIL.Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _resize(image: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """Resize with bicubic interpolation, one dimension at a time, in the order of Pillow 13."""
    width, height = image.size
    rows_first = height > size and height - size > 2 * (width - size)
    for shape in ((width, size) if rows_first else (size, height), (size, size)):
        image = image.resize(shape, PIL.Image.Resampling.BICUBIC)
    return image
