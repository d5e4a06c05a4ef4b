"""Few-shot examples: the nearest training images (RICES), random ones, or text-only ones.

RICES (Yang et al. 2021, as in Flamingo): the training examples whose image features are nearest to the question's, the
most similar last.
"""

import collections
import dataclasses
import enum
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from emu_jax.bounds import Checked, CountOrZero, Seed
from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.features import Encoder, media_features
from emu_jax.evaluation.prompts import Shot, Shots
from emu_jax.evaluation.runner import MAX_SKEW_SECONDS, missing_media
from emu_jax.evaluation.task import Task
from emu_jax.waiting import barrier


class Choice(enum.Enum):
    """The choice of examples."""

    RICES = "rices"
    RANDOM = "random"
    TEXT = "text"  # the same examples for all questions, without their images: the paper's `*` with two


@dataclasses.dataclass(frozen=True)
class ShotOptions(Checked):
    """Few-shot examples in front of each question.

    Attributes:
      count: examples per question; 0 for none.
      choice: see `Choice`.
      seed: of random and text-only examples.
    """

    count: CountOrZero = 0
    choice: Choice = Choice.RICES
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"--shots must be at least 0, not {self.count}.")
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """The network that RICES compares images with.

    Attributes:
      encoder: computes features.
      network: identifies its weights.
      store: folder that features are saved in.
      together: all processes compute the features together, because the network is sharded over them.
    """

    encoder: Encoder
    network: str
    store: Path
    together: bool = False


def make_shots(
    task: Task, root: Path, examples: Sequence[Example], options: ShotOptions, source: Callable[[], FeatureSource]
) -> Shots:
    """Return a function that gives the few-shot examples of an example.

    Raises:
      UserError: the task has no training set, or it is not there or too small.
    """
    if options.count == 0:
        return lambda example: ()
    if task.training_split is None:
        raise UserError(f"{task.name} has no training examples; use --shots 0.")
    training = task.read(DataRoot(root, task.name), task.training_split)
    if len(training) < options.count:
        raise UserError(
            f"The training set of {task.name} has {len(training)} examples; --shots asks for {options.count}."
        )
    if options.choice is Choice.TEXT:
        rows = np.random.default_rng(options.seed).choice(len(training), options.count, replace=False)
        fixed = tuple(_shot(training[i], text_only=True) for i in rows)
        return lambda example: fixed
    missing = missing_media(training)
    training = [example for example in training if example.key not in missing]
    by_media: dict[tuple[Path, ...], list[Example]] = collections.defaultdict(list)
    for example in training:
        by_media[example.media].append(example)
    media = list(by_media)
    if len(media) <= options.count:
        raise UserError(f"The training set of {task.name} has {len(media)} images that are there; more are required.")
    nearest = _nearest(media, examples, options.count, source) if options.choice is Choice.RICES else None

    def shots(example: Example) -> tuple[Shot, ...]:
        rng = np.random.default_rng([options.seed, zlib.crc32(repr(example.key).encode())])
        if nearest is not None:
            chosen = nearest[example.media]
        else:
            others = [i for i in rng.permutation(len(media))[: options.count + 1] if media[i] != example.media]
            chosen = others[: options.count]
        return tuple(_shot(by_media[media[i]][rng.integers(len(by_media[media[i]]))]) for i in chosen)

    return shots


def _nearest(
    media: Sequence[tuple[Path, ...]], examples: Sequence[Example], count: int, source: Callable[[], FeatureSource]
) -> dict[tuple[Path, ...], list[int]]:
    """Return the positions in `media` of the nearest images of each example's image, the most similar last."""
    absent = missing_media(examples)
    asked = list(dict.fromkeys(example.media for example in examples if example.key not in absent))
    network = source()

    def features(of: Sequence[tuple[Path, ...]]) -> np.ndarray:
        paths = [one[0] for one in of]
        return media_features(paths, network.encoder, network=network.network, store=network.store)

    both = lambda: (features(media), features(asked))
    computed = both() if jax.process_index() == 0 or network.together else None
    barrier("features", seconds=MAX_SKEW_SECONDS)
    table, queries = both() if computed is None else computed  # the others read what the first process has saved
    nearest = {}
    for row, one in enumerate(asked):
        similarity = table @ queries[row]
        order = np.argsort(-similarity, kind="stable")[: count + 1]
        nearest[one] = [int(i) for i in order if media[i] != one][:count][::-1]
    return nearest


def _shot(example: Example, *, text_only: bool = False) -> Shot:
    """Return an example with the answer that most people gave."""
    answer = collections.Counter(example.references).most_common(1)[0][0]
    return Shot(example, answer.strip().rstrip("."), text_only)
