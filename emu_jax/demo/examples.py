"""Common parts of the synthetic world's tasks: settings, rendered scenes, scores by group, samples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from emu_jax.demo.scores import Scores, mean_score
from emu_jax.demo.world.grammar import ATTRIBUTES
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    LOCATIONS,
    QUADRANTS,
    SHAPES,
    SIZES,
    Scene,
    Split,
    has_held_out,
    sample_scene,
)
from emu_jax.errors import UserError

_STREAM = 0x7E57  # differs from the seeds of the training files
_SEED_NAMES = {"videos": "films", "classifier": "pixel reader"}  # earlier task names, so that the scenes stay the same
OPTIONS = {"shape": SHAPES, "color": COLORS, "size": SIZES, "location": LOCATIONS, "background": BACKGROUNDS}


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation on the synthetic world.

    Attributes:
      num_scenes: scenes per score of text answers.
      num_images: scenes per score of generated images, which take longer.
      image_size: pixels per side of the model's input.
      num_frames: frames per video.
      batch_size: prompts per batch.
      num_beams: beams for text answers.
      max_new_tokens: of text answers; a caption of three objects has about 60 tokens.
      num_samples: samples per task for the report.
    """

    num_scenes: int = 256
    num_images: int = 128
    seed: int = 0
    image_size: int = 32
    num_frames: int = 4
    batch_size: int = 64
    num_beams: int = 1
    max_new_tokens: int = 96
    num_samples: int = 24

    def __post_init__(self) -> None:
        for name in ("num_scenes", "num_images", "num_frames", "batch_size", "num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, not {self.seed}.")

    def rng(self, task: str) -> np.random.Generator:
        """Return the generator of a task's scenes, which does not depend on the other tasks of the evaluation."""
        return np.random.default_rng([_STREAM, self.seed, *_SEED_NAMES.get(task, task).encode()])


@dataclass(frozen=True)
class RenderedScene:
    """A scene and one rendering of it."""

    scene: Scene
    image: np.ndarray


@dataclass(frozen=True)
class Sample:
    """A prompt with its answer, for the report.

    Attributes:
      images: images of the prompt.
      prompt: text of the prompt.
      answer: text, or an image.
      expected: a correct answer as text.
      correct: None if the answer is not graded.
      detected: the classifier's description of a generated image.
    """

    images: tuple[np.ndarray, ...]
    prompt: str
    answer: str | np.ndarray
    expected: str
    correct: bool | None
    detected: str = ""


@dataclass(frozen=True)
class TaskResult:
    """Scores of a task, and samples by section of the report."""

    scores: Scores
    samples: dict[str, list[Sample]] = field(default_factory=dict)


def sample_scenes(
    rng: np.random.Generator, settings: Settings, *, count: int, num_objects: int | None = None
) -> list[RenderedScene]:
    """Return `count` rendered scenes of the test split; half of them have a held-out object."""
    scenes = [sample_scene(rng, split=Split.TEST, num_objects=num_objects) for _ in range(count)]
    return [RenderedScene(scene, render(scene, rng, size=settings.image_size)) for scene in scenes]


def by_split(name: str, hits: Sequence[float], scenes: Sequence[Scene], *, chance: float | None = None) -> Scores:
    """Return the score over all scenes, and separately over those without and with a held-out object."""
    groups = {
        name: list(hits),
        f"{name}_seen": [hit for hit, scene in zip(hits, scenes, strict=True) if not has_held_out(scene)],
        f"{name}_held_out": [hit for hit, scene in zip(hits, scenes, strict=True) if has_held_out(scene)],
    }
    return {key: mean_score(values, chance=chance) for key, values in groups.items() if values}


def by_attribute(name: str, results: Iterable[Mapping[str, float]], *, chances: Mapping[str, float]) -> Scores:
    """Return `name/shape`, `name/color`, ... from results that hold a score in 0..1 per attribute."""
    rows = list(results)
    return {
        f"{name}/{attribute}": mean_score([row[attribute] for row in rows], chance=chances[attribute])
        for attribute in ATTRIBUTES
    }


def attribute_chances() -> dict[str, float]:
    """Return the probability that a random guess of each attribute of a single object is correct."""
    return {attribute: 1 / len(options) for attribute, options in OPTIONS.items()}


def count_scenes(num_objects: int) -> int:
    """Return the number of different scenes of so many objects, ignoring their order."""
    locations = LOCATIONS if num_objects == 1 else QUADRANTS
    appearances = math.perm(len(COLORS) * len(SHAPES), num_objects) * len(SIZES) ** num_objects
    return math.comb(len(locations), num_objects) * appearances * len(BACKGROUNDS)
