"""Questions about a scene, each with one correct answer of one or two words."""

import enum
from dataclasses import dataclass

import numpy as np

from emu_jax.demo.world.grammar import caption, normalize, where
from emu_jax.demo.world.scenes import Scene, choose


class QuestionKind(enum.Enum):
    """Subjects of questions."""

    COLOR = "color"
    SHAPE = "shape"
    LOCATION = "where"
    COUNT = "how many"
    DIRECTION = "direction"  # of clips only; see motion.py


@dataclass(frozen=True)
class Question:
    """A question with its answer."""

    kind: QuestionKind
    question: str
    answer: str

    def is_correct(self, text: str) -> bool:
        """Return True if `text` is the answer in any case; "at the top left" equals "top left"."""
        words = [word for word in normalize(text).split() if word not in ("a", "an", "the", "at", "in", "to")]
        return " ".join(words) == self.answer


COUNT_WORDS = ("one", "two", "three")


def _only(scene: Scene, attribute: str, item) -> bool:
    return sum(getattr(other, attribute) is getattr(item, attribute) for other in scene.objects) == 1


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return the unambiguous questions about `scene`, one wording each, in random order.

    An object is identified by an attribute that no other object has: its shape, its color, its location, or its color
    and shape together, which are unique in every scene.
    """
    found = []
    for item in scene.objects:
        color, shape, location = item.color.value, item.shape.value, where(item.location)
        by_shape, by_color = _only(scene, "shape", item), _only(scene, "color", item)
        of_color = [f"what color is the object {location}?"]
        of_shape = [f"what shape is {location}?", f"what shape is the object {location}?"]
        of_location = [f"where is the {color} {shape}?"]
        if by_shape:
            of_color.append(f"what color is the {shape}?")
            of_location.append(f"where is the {shape}?")
        if by_color:
            of_shape.append(f"what shape is the {color} object?")
            of_location.append(f"where is the {color} object?")
        found.append(Question(QuestionKind.COLOR, choose(rng, of_color), color))
        found.append(Question(QuestionKind.SHAPE, choose(rng, of_shape), shape))
        found.append(Question(QuestionKind.LOCATION, choose(rng, of_location), item.location.value))
    of_count = ("how many objects are there?", "how many objects are in the picture?")
    found.append(Question(QuestionKind.COUNT, choose(rng, of_count), COUNT_WORDS[len(scene.objects) - 1]))
    return [found[i] for i in rng.permutation(len(found))]


_DESCRIBE = ("describe the picture.", "what is in the picture?", "please describe the given image.")


def conversation(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return one to three turns (human, assistant) about `scene`: questions, sometimes after a description."""
    turns = [(choose(rng, _DESCRIBE), caption(scene, rng))] if rng.random() < 1 / 3 else []
    asked = questions(scene, rng)[: int(rng.integers(1, 4)) - len(turns)]
    return turns + [(item.question, item.answer) for item in asked]
