"""One example of a benchmark, read from its annotations."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Key = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """A question, an image to describe, a dialog round, a text to make an image of.

    Attributes:
      key: the ids of a line of predictions.jsonl, in the order of `Task.key_fields`.
      media: images or videos in the order of the prompt.
      text: the question or caption; empty for captioning.
      references: people's answers or captions; empty for a split without annotations.
      details: further facts that the task's metric or predictor uses.
    """

    key: Key
    media: tuple[Path, ...] = ()
    text: str = ""
    references: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
