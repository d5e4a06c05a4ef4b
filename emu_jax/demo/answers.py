"""Text answers of a model, by the runner of `evaluate`: prompts sorted by length, batched, and prepared ahead."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_jax.demo.examples import Settings
from emu_jax.demo.models import EmuModel
from emu_jax.demo.prompts import Prompt
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.prompts import Shot
from emu_jax.evaluation.runner import run_model
from emu_jax.evaluation.task import BatchContext, Task, check_text


@dataclasses.dataclass(frozen=True)
class AnswerPrompts:
    """A predictor of the texts after the prompts in `details["prompt"]`; `options` are those of `TextOptions`."""

    options: Mapping[str, Any]

    def describe(self) -> Mapping[str, Any]:
        return {"generation": self.options}

    def length(self, emu: Any, example: Example, shots: Sequence[Shot]) -> int:
        return len(emu.build_prompt(example.details["prompt"]).tokens)

    def prepare(self, emu: Any, example: Example, shots: Sequence[Shot]) -> Any:
        return emu.build_prompt(example.details["prompt"])

    def predict(self, emu: Any, prepared: Sequence[Any], *, context: BatchContext) -> list[str]:
        del context
        return [text.strip() for text in emu.generate_text_batch(prepared, **self.options)]


def answer(emu: EmuModel, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
    """Return the text that the model generates after each prompt."""
    examples = [Example((number,), details={"prompt": prompt}) for number, prompt in enumerate(prompts)]
    task = Task(
        name="synthetic",
        title="Synthetic shapes world",
        files={},
        splits=("test",),
        source="scenes sampled for the evaluation",
        read=lambda data, split: examples,
        key_fields=("scene",),
        value_field="answer",
        check=check_text,
        predictor=AnswerPrompts({"num_beams": settings.num_beams, "max_new_tokens": settings.max_new_tokens}),
        metric=None,
        headline="",
    )
    model: Any = emu  # only the predictor uses it
    with tempfile.TemporaryDirectory() as folder:
        run = run_model(
            model, task, examples, folder=Path(folder), shots=lambda example: (), identity={},
            batch_size=settings.batch_size, max_missing=0,
        )  # fmt: skip
    assert run is not None
    return [run.predictions[example.key] for example in examples]
