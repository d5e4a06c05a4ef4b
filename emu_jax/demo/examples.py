"""What the tasks of the drawn world share: settings, fresh scenes with their pictures, scores by group, samples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from emu_jax.demo.scores import Scores, share
from emu_jax.demo.world.grammar import ATTRIBUTES
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    QUADRANTS,
    SHAPES,
    SIZES,
    Scene,
    Split,
    has_held_out,
    sample_scene,
)
from emu_jax.errors import UserError

_STREAM = 0x7E57  # the generators of the world's training files are seeded with other sequences
OPTIONS = {"shape": SHAPES, "color": COLORS, "size": SIZES, "place": PLACES, "background": BACKGROUNDS}


@dataclass(frozen=True)
class Settings:
    """How the drawn world is evaluated.

    Attributes:
      num_scenes: scenes of each score that is text.
      num_images: scenes of each score that wants pictures painted, which takes longer.
      image_size: pixels a side, as the model reads them.
      num_frames: frames that stand for a film.
      batch_size: prompts at a time.
      num_beams: of the answers.
      max_new_tokens: of the answers; three objects take about 60 tokens.
      num_samples: kept of each task, to be shown.
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

    def rng(self, task: str) -> np.random.Generator:
        """The generator of a task's scenes; each task has its own, whichever others run."""
        return np.random.default_rng([_STREAM, self.seed, *task.encode()])


@dataclass(frozen=True)
class Pictured:
    """A scene and one drawing of it."""

    scene: Scene
    image: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One prompt with its answer, for the eye.

    Attributes:
      shown: pictures of the prompt.
      said: text of the prompt.
      answer: text, or a picture.
      wanted: a right answer in words.
      right: None where nothing is judged.
      note: what the pixel reader sees in a picture that was made.
    """

    shown: tuple[np.ndarray, ...]
    said: str
    answer: str | np.ndarray
    wanted: str
    right: bool | None
    note: str = ""


@dataclass(frozen=True)
class TaskResult:
    """`samples` by the section of the page that shows them."""

    scores: Scores
    samples: dict[str, list[Sample]] = field(default_factory=dict)


def pictured(
    rng: np.random.Generator, settings: Settings, *, count: int, num_objects: int | None = None
) -> list[Pictured]:
    """`count` scenes of the test split (half of them with a held-out object), each drawn once."""
    scenes = [sample_scene(rng, split=Split.TEST, num_objects=num_objects) for _ in range(count)]
    return [Pictured(scene, render(scene, rng, size=settings.image_size)) for scene in scenes]


def by_split(name: str, hits: Sequence[float], scenes: Sequence[Scene], *, chance: float | None = None) -> Scores:
    """`name` over all scenes, and apart for those of combinations seen in training and those with a held-out one."""
    groups = {
        name: list(hits),
        f"{name}_seen": [hit for hit, scene in zip(hits, scenes, strict=True) if not has_held_out(scene)],
        f"{name}_held_out": [hit for hit, scene in zip(hits, scenes, strict=True) if has_held_out(scene)],
    }
    return {key: share(values, chance=chance) for key, values in groups.items() if values}


def by_attribute(name: str, results: Iterable[Mapping[str, float]], *, chances: Mapping[str, float]) -> Scores:
    """`name/shape`, `name/color`, ... of results that hold a share of each attribute."""
    rows = list(results)
    return {f"{name}/{kind}": share([row[kind] for row in rows], chance=chances[kind]) for kind in ATTRIBUTES}


def attribute_chances() -> dict[str, float]:
    """How often a blind guess of each attribute of a lone object is right."""
    return {kind: 1 / len(options) for kind, options in OPTIONS.items()}


def count_scenes(num_objects: int) -> int:
    """How many scenes of so many objects there are, their order aside: a blind caption is right once in as many."""
    places = PLACES if num_objects == 1 else QUADRANTS
    kinds = math.perm(len(COLORS) * len(SHAPES), num_objects) * len(SIZES) ** num_objects
    return math.comb(len(places), num_objects) * kinds * len(BACKGROUNDS)
