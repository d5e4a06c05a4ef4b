"""A tokenizer of the synthetic world, and models that answer every task from the images themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.demo.world.classifier import classify_scene
from emu_jax.demo.world.corpus import corpus
from emu_jax.demo.world.grammar import caption, parse_caption
from emu_jax.demo.world.motion import DIRECTIONS, Direction
from emu_jax.demo.world.questions import questions
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import BACKGROUNDS, COLORS, LOCATIONS, SHAPES, SIZES, Object, Scene
from emu_jax.generation.prompt import Tokens

OPTIONS = (SHAPES, COLORS, SIZES, LOCATIONS, BACKGROUNDS)
Change = Callable[[Scene], Scene]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    lines = corpus(np.random.default_rng(0), 1500)
    return train_tokenizer(lines, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=420)


def scene_of(image: np.ndarray) -> Scene:
    """Return the scene of a rendered image."""
    detected = classify_scene(image)
    objects = tuple(Object(item.shape, item.color, item.size, item.location) for item in detected.objects)
    return Scene(objects, detected.background)


def encode(scene: Scene) -> np.ndarray:
    """Return a one-object scene as embeddings [2, 20]: one-hot vectors of its attributes, twice."""
    item = scene.objects[0]
    values = (item.shape, item.color, item.size, item.location, scene.background)
    one_hot = [[float(value is option) for option in options] for options, value in zip(OPTIONS, values, strict=True)]
    row = np.concatenate(one_hot)
    return np.stack([row, row]).astype(np.float32)


def decode(embeddings: np.ndarray) -> Scene:
    """Return the scene of `encode`."""
    ends = np.cumsum([len(options) for options in OPTIONS])[:-1]
    parts = np.split(embeddings[0], ends)
    values = [options[int(part.argmax())] for options, part in zip(OPTIONS, parts, strict=True)]
    return Scene((Object(*values[:4]),), values[4])


@dataclasses.dataclass
class BuiltPrompt:
    """The parts of a prompt; to the oracle each is a token."""

    tokens: list[Any]


@dataclasses.dataclass
class Oracle:
    """A model that answers every prompt of the synthetic world; `change` alters the scenes to get wrong answers."""

    tokenizer: Tokenizer
    change: Change = lambda scene: scene
    reverse_videos: bool = False

    def build_prompt(self, prompt: Sequence[Any]) -> BuiltPrompt:
        return BuiltPrompt(list(prompt))

    def generate_text_batch(self, prompts: Sequence[BuiltPrompt], **options: Any) -> list[str]:
        return [self._answer(prompt.tokens) for prompt in prompts]

    def _answer(self, prompt: list[Any]) -> str:
        frames = [part for part in prompt if isinstance(part, np.ndarray)]
        texts = [self.tokenizer.decode(part.ids) for part in prompt if isinstance(part, Tokens)]
        if len(frames) > 1:
            first, last = (scene_of(frame).objects[0].location for frame in (frames[0], frames[-1]))
            index = DIRECTIONS.index(_direction(first.value, last.value))
            word = DIRECTIONS[(index + 1) % 4 if self.reverse_videos else index].value
            return word if texts else f"a small red circle moving to the {word} on a gray background"
        scene = self.change(scene_of(frames[0]))
        if not texts:
            return f" {caption(scene, np.random.default_rng(len(scene.objects)))} "
        (question,) = [text for text in texts if text.endswith("?")]
        for seed in range(200):  # enough for every wording
            for known in questions(scene, np.random.default_rng(seed)):
                if known.question == question:
                    return known.answer
        return "there is no such object"

    def visual_embeddings(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([encode(scene_of(image)) for image in images])

    def generate_embeddings_batch(self, prompts: Sequence[Any]) -> np.ndarray:
        return np.stack([encode(self.change(self._target(list(prompt)))) for prompt in prompts])

    def _target(self, prompt: list[Any]) -> Scene:
        images = [part for part in prompt if isinstance(part, np.ndarray)]
        if not images:
            parsed = parse_caption(prompt[0])
            assert parsed is not None
            assert parsed.background is not None
            (item,) = parsed.objects
            return Scene((Object(**dataclasses.asdict(item)),), parsed.background)
        first, second = map(scene_of, images)
        if isinstance(prompt[-1], str):  # the object of image 1 in the color of image 2
            color = second.object.color
            return dataclasses.replace(first, objects=(dataclasses.replace(first.object, color=color),))
        return first  # blending has no correct answer


def _direction(first: str, last: str) -> Direction:
    for direction in DIRECTIONS:
        if direction.value in ("left", "right") and direction.value in last and direction.value not in first:
            return direction
        if direction.value == {"top": "up", "bottom": "down"}[last.split()[0]] and first.split()[0] not in last:
            return direction
    raise AssertionError(f"no direction leads from {first} to {last}")


class Renderer:
    """An image generator that renders the scene of `encode`."""

    def generate(self, embeddings: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.stack([render(decode(row), rng, size=32) for row in embeddings])


def next_color(scene: Scene) -> Scene:
    """Return the scene with another color for every object."""
    objects = tuple(
        dataclasses.replace(item, color=COLORS[(COLORS.index(item.color) + 1) % len(COLORS)]) for item in scene.objects
    )
    return dataclasses.replace(scene, objects=objects)
