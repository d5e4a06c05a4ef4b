"""Predictors of the tasks whose prediction is a text or a ranking."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emu_jax.evaluation.example import Example
from emu_jax.evaluation.prompts import Shot, Template, build, count_tokens
from emu_jax.evaluation.task import BatchContext
from emu_jax.generation.options import TextOptions
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import Part, Prompt


@dataclasses.dataclass(frozen=True)
class GenerateText:
    """Generate an answer and post-process it."""

    template: Template
    options: TextOptions
    post_process: Callable[[str], str]

    def describe(self) -> Mapping[str, Any]:
        return {**self.template.describe(), "generation": dataclasses.asdict(self.options)}

    def length(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> int:
        return count_tokens(emu, self.template.parts(example, shots))

    def prepare(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> Prompt:
        return build(emu, self.template.parts(example, shots))

    def predict(self, emu: EmuPipeline, prepared: Sequence[Prompt], *, context: BatchContext) -> list[str]:
        del context
        options = dataclasses.asdict(self.options)
        return [self.post_process(text) for text in generate(emu, prepared, options)]


@dataclasses.dataclass(frozen=True)
class AnswerabilityFirst:
    """Ask whether the answer is known before the question itself, as the release does for VizWiz.

    The release lets beam search write "yes." or "no." only. With 5 beams and length penalty 0 that is the likelier of
    the two, `</s>` included. "no." makes the answer "unanswerable".
    """

    answerability: Template
    answer: GenerateText

    def describe(self) -> Mapping[str, Any]:
        return {"answerability": self.answerability.describe()["prompt"], **self.answer.describe()}

    def length(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> int:
        return count_tokens(emu, self.answerability.parts(example, shots))

    def prepare(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> tuple[Prompt, Prompt]:
        answer = self.answer.prepare(emu, example, shots)
        images = iter(answer.images[-len(example.media) :])  # the example follows its shots
        asked = [part if isinstance(part, str) else next(images) for part in self.answerability.parts(example)]
        return build(emu, asked), answer

    def predict(
        self, emu: EmuPipeline, prepared: Sequence[tuple[Prompt, Prompt]], *, context: BatchContext
    ) -> list[str]:
        asked, prompts = zip(*prepared, strict=True)
        scores = emu.score_batch(asked, [("yes.", "no.")] * len(asked), end=True)
        answers = self.answer.predict(emu, prompts, context=context)
        return ["unanswerable" if no > yes else answer for (yes, no), answer in zip(scores, answers, strict=True)]


@dataclasses.dataclass(frozen=True)
class RankOptions:
    """Rank the options in `details["options"]` by their likelihood after the prompt.

    The release divides the summed log-likelihood of an option's tokens by the tokens of prompt and option less one.
    """

    parts: Callable[[Example], list[Part]]
    prompt: str

    def describe(self) -> Mapping[str, Any]:
        return {"prompt": self.prompt, "ranking": "mean log-likelihood over prompt and option, as the release"}

    def length(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> int:
        return count_tokens(emu, self.parts(example))

    def prepare(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> tuple[Prompt, Sequence[str]]:
        return build(emu, self.parts(example)), example.details["options"]

    def predict(
        self, emu: EmuPipeline, prepared: Sequence[tuple[Prompt, Sequence[str]]], *, context: BatchContext
    ) -> list[list[int]]:
        del context
        return [self._rank(emu, prompt, options) for prompt, options in prepared]

    def _rank(self, emu: EmuPipeline, prompt: Prompt, options: Sequence[str]) -> list[int]:
        scores = emu.score_batch([prompt], [options])[0].astype(np.float64)
        lengths = np.array([len(emu.tokenizer.encode(option.strip())) for option in options])
        order = np.argsort(-scores / (len(prompt.tokens) + lengths - 1), kind="stable")
        ranks = np.empty(len(options), np.int64)
        ranks[order] = np.arange(1, len(options) + 1)
        return ranks.tolist()


def generate(emu: EmuPipeline, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[str]:
    """Return the text after each prompt; all prompts form one batch."""
    texts = emu.generate_text_batch(prompts, batch_size=len(prompts), **options)
    return [str(text) for text in texts]


def first_sentence(text: str) -> str:
    """Return a caption up to the first line end or ". ", without a final ".", in lower case, as the release."""
    text = text.split("\n")[0].split(". ")[0]
    return text.removesuffix(".").lower()


def short_answer(text: str) -> str:
    """Shorten a generated answer as the release does.

    short_answer(" The dog, and a cat.")  -> "dog"
    short_answer("It is a red ball. So")  -> "red ball"
    """
    for end in ("\n", ". ", '"', ", "):
        text = text.split(end)[0]
    text = text.strip().lower().removesuffix(".")
    for opening in ("it is ", "it's ", "a ", "an ", "the "):
        text = text.removeprefix(opening)
    return text


def strip(text: str) -> str:
    """Remove white space at both ends."""
    return text.strip()
