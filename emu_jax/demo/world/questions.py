"""Questions about a scene, each with one right answer of a word or two."""

import enum
from dataclasses import dataclass

import numpy as np

from emu_jax.demo.world.grammar import caption, normalize, where
from emu_jax.demo.world.scenes import Scene, choose


class QuestionKind(enum.Enum):
    COLOR = "color"
    SHAPE = "shape"
    PLACE = "where"
    COUNT = "how many"
    DIRECTION = "direction"  # asked of clips, see motion.py


@dataclass(frozen=True)
class Question:
    kind: QuestionKind
    question: str
    answer: str

    def is_right(self, text: str) -> bool:
        """Whether `text` is the answer, whatever its case; "at the top left" is as good as "top left"."""
        words = [word for word in normalize(text).split() if word not in ("a", "an", "the", "at", "in", "to")]
        return " ".join(words) == self.answer


COUNT_WORDS = ("one", "two", "three")


def _only(scene: Scene, attribute: str, item) -> bool:
    return sum(getattr(other, attribute) is getattr(item, attribute) for other in scene.objects) == 1


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """The questions that `scene` answers without ambiguity, one wording each, in random order.

    An object is named by what tells it from the others: its shape where no other has it, its colour, its place, or both
    colour and shape, which no two objects share.
    """
    found = []
    for item in scene.objects:
        color, shape, place = item.color.value, item.shape.value, where(item.place)
        by_shape, by_color = _only(scene, "shape", item), _only(scene, "color", item)
        of_color = [f"what color is the object {place}?"]
        of_shape = [f"what shape is {place}?", f"what shape is the object {place}?"]
        of_place = [f"where is the {color} {shape}?"]
        if by_shape:
            of_color.append(f"what color is the {shape}?")
            of_place.append(f"where is the {shape}?")
        if by_color:
            of_shape.append(f"what shape is the {color} object?")
            of_place.append(f"where is the {color} object?")
        found.append(Question(QuestionKind.COLOR, choose(rng, of_color), color))
        found.append(Question(QuestionKind.SHAPE, choose(rng, of_shape), shape))
        found.append(Question(QuestionKind.PLACE, choose(rng, of_place), item.place.value))
    of_count = ("how many objects are there?", "how many objects are in the picture?")
    found.append(Question(QuestionKind.COUNT, choose(rng, of_count), COUNT_WORDS[len(scene.objects) - 1]))
    return [found[i] for i in rng.permutation(len(found))]


_DESCRIBE = ("describe the picture.", "what is in the picture?", "please describe the given image.")


def conversation(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """One to three turns (human, assistant) about `scene`: questions, now and then after a description."""
    turns = [(choose(rng, _DESCRIBE), caption(scene, rng))] if rng.random() < 1 / 3 else []
    asked = questions(scene, rng)[: int(rng.integers(1, 4)) - len(turns)]
    return turns + [(item.question, item.answer) for item in asked]
