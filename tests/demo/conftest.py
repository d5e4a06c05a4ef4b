"""A tokenizer of the drawn world, and those who know every answer in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.demo.world.classifier import read_scene
from emu_jax.demo.world.corpus import corpus
from emu_jax.demo.world.grammar import caption, parse_caption
from emu_jax.demo.world.motion import DIRECTIONS
from emu_jax.demo.world.questions import questions
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene
from emu_jax.generation.prompt import Tokens

KINDS = (SHAPES, COLORS, SIZES, PLACES, BACKGROUNDS)
Twist = Callable[[Scene], Scene]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    lines = corpus(np.random.default_rng(0), 1500)
    return train_tokenizer(lines, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=420)


def seen(image: np.ndarray) -> Scene:
    """The scene of a true drawing."""
    read = read_scene(image)
    objects = tuple(Object(item.shape, item.color, item.size, item.place) for item in read.objects)
    return Scene(objects, read.background)


def code(scene: Scene) -> np.ndarray:
    """A one-object scene as embeddings [2, 20]: which of each attribute's options, and the same again."""
    item = scene.objects[0]
    chosen = (item.shape, item.color, item.size, item.place, scene.background)
    row = np.concatenate([[float(one is option) for option in options] for options, one in zip(KINDS, chosen)])  # noqa: B905
    return np.stack([row, row]).astype(np.float32)


def decode(embeddings: np.ndarray) -> Scene:
    """The scene that `code` was given."""
    ends = np.cumsum([len(options) for options in KINDS])[:-1]
    picked = [options[int(part.argmax())] for options, part in zip(KINDS, np.split(embeddings[0], ends), strict=True)]
    return Scene((Object(*picked[:4]),), picked[4])


@dataclasses.dataclass
class Oracle:
    """Answers every prompt of the drawn world from its pictures and words; `twist` says how it gets scenes wrong."""

    tokenizer: Tokenizer
    twist: Twist = lambda scene: scene
    reverse_videos: bool = False

    def generate_text_batch(self, prompts: Sequence[Any], **options: Any) -> list[str]:
        return [self._answer(list(prompt)) for prompt in prompts]

    def _answer(self, prompt: list[Any]) -> str:
        frames = [part for part in prompt if isinstance(part, np.ndarray)]
        said = [self.tokenizer.decode(part.ids) for part in prompt if isinstance(part, Tokens)]
        if len(frames) > 1:
            first, last = (seen(frame).objects[0].place for frame in (frames[0], frames[-1]))
            way = DIRECTIONS.index(_direction(first.value, last.value))
            word = DIRECTIONS[(way + 1) % 4 if self.reverse_videos else way].value
            return word if said else f"a small red circle moving to the {word} on a gray background"
        scene = self.twist(seen(frames[0]))
        if not said:
            return f" {caption(scene, np.random.default_rng(len(scene.objects)))} "
        (question,) = [text for text in said if text.endswith("?")]
        for seed in range(200):  # every wording, sooner or later
            for known in questions(scene, np.random.default_rng(seed)):
                if known.question == question:
                    return known.answer
        return "it is not there"

    def visual_embeddings(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([code(seen(image)) for image in images])

    def generate_embeddings_batch(self, prompts: Sequence[Any]) -> np.ndarray:
        return np.stack([code(self.twist(self._imagine(list(prompt)))) for prompt in prompts])

    def _imagine(self, prompt: list[Any]) -> Scene:
        pictures = [part for part in prompt if isinstance(part, np.ndarray)]
        if not pictures:
            parsed = parse_caption(prompt[0])
            assert parsed is not None
            assert parsed.background is not None
            (item,) = parsed.objects
            return Scene((Object(**dataclasses.asdict(item)),), parsed.background)
        first, second = map(seen, pictures)
        if isinstance(prompt[-1], str):  # the object of image 1 in the color of image 2
            color = second.object.color
            return dataclasses.replace(first, objects=(dataclasses.replace(first.object, color=color),))
        return first  # of a blend, anything


def _direction(first: str, last: str) -> Any:
    for direction in DIRECTIONS:
        if direction.value in ("left", "right") and direction.value in last and direction.value not in first:
            return direction
        if direction.value == {"top": "up", "bottom": "down"}[last.split()[0]] and first.split()[0] not in last:
            return direction
    raise AssertionError(f"no way leads from {first} to {last}")


class Draughtsman:
    """Paints what `code` says."""

    def paint(self, embeddings: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.stack([render(decode(row), rng, size=32) for row in embeddings])


def next_color(scene: Scene) -> Scene:
    """The scene in which every object has another color."""
    objects = tuple(
        dataclasses.replace(item, color=COLORS[(COLORS.index(item.color) + 1) % len(COLORS)]) for item in scene.objects
    )
    return dataclasses.replace(scene, objects=objects)
