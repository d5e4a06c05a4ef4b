"""Prompts as the released evaluation code of Emu lays them out, with few-shot examples as earlier turns.

    SYSTEM [USER]: IMAGE REQUEST [ASSISTANT]: LEAD
    SYSTEM [USER]: IMAGE REQUEST [ASSISTANT]: LEAD ANSWER.</s> [USER]: IMAGE REQUEST [ASSISTANT]: LEAD

`[USER]` and `[ASSISTANT]` are special tokens of the instruction-tuned model and plain text to the base model. Turns are
closed by `</s>` as the release does it for VisDial; its few-shot code is not public. A text-only example is a turn
without its image: two of these are the setting that the paper marks with `*`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from emu_jax.data.chat_layout import SYSTEM_IMAGE
from emu_jax.data.media_paths import VIDEO_SUFFIXES
from emu_jax.data.tokenizer import IMAGE_TOKEN
from emu_jax.evaluation.example import Example
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import VIDEO_FRAMES, Part, Prompt

VQA_REQUEST = (
    "based on the content of the {media} and common sense, please provide an accurate answer consisting of only one "
    "word or phrase. {question}"
)


@dataclasses.dataclass(frozen=True)
class Shot:
    """An example with its answer in front of the question; `text_only` leaves its image out."""

    example: Example
    answer: str
    text_only: bool = False


Shots = Callable[[Example], Sequence[Shot]]


@dataclasses.dataclass(frozen=True)
class Template:
    """The words of a prompt; `{question}` in `request` is the example's text."""

    request: str
    lead: str = ""
    system: str = SYSTEM_IMAGE

    def parts(self, example: Example, shots: Sequence[Shot] = ()) -> list[Part]:
        """Return text and media in order; special tokens are written as text."""
        parts: list[Part] = [self.system]
        for shot in shots:
            parts += self._turn(shot.example, text_only=shot.text_only)
            parts.append(f" {shot.answer}.</s>")
        return parts + self._turn(example)

    def describe(self) -> Mapping[str, str]:
        """Return the prompt with placeholders."""
        return {"prompt": f"{self.system} [USER]: {{media}} {self.request} [ASSISTANT]: {self.lead}".strip()}

    def _turn(self, example: Example, *, text_only: bool = False) -> list[Part]:
        question = example.text.replace(IMAGE_TOKEN, IMAGE_TOKEN.strip("<>"))
        media = () if text_only else example.media
        lead = f" {self.lead}" if self.lead else ""
        request = self.request.replace("{question}", question)
        return [" [USER]:", *media, f" {request} [ASSISTANT]:{lead}"]


def build(emu: EmuPipeline, parts: Sequence[Part]) -> Prompt:
    """Return the tokens and the decoded images of a prompt.

    Raises:
      UserError: an image or video cannot be read.
    """
    return emu.build_prompt(list(parts), special_tokens=True)


def count_tokens(emu: EmuPipeline, parts: Sequence[Part]) -> int:
    """Return the number of tokens of a prompt without reading its media."""
    size = emu.config.vision.image_size
    blank = np.zeros((size, size, 3), np.float32)
    placeholders: list[Part] = []
    for part in parts:
        if isinstance(part, Path):
            placeholders += [blank] * (VIDEO_FRAMES if part.suffix.lower() in VIDEO_SUFFIXES else 1)
        else:
            placeholders.append(part)
    return len(build(emu, placeholders).tokens)
