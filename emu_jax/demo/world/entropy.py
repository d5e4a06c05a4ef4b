"""The entropy of the synthetic world's texts, computed from the generator: the lowest loss that any model can reach.

A text's entropy is taken given all that precedes it in its document. A text after its image has only its wording left;
a text before its image carries the scene too. Images are taken to show their scene without error, and the kind of the
document to be known. Nats per document are exact; the tokens per document that they are divided by are a mean over
sampled documents, each `[IMG]` and `</s>` counted as in training with `predict_boi`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text, Video
from emu_jax.data.sequence import SequenceConfig, build_sequence
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.demo.world.grammar import caption
from emu_jax.demo.world.motion import Clip, clip_caption, sample_clip
from emu_jax.demo.world.questions import conversation
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    LOCATIONS,
    QUADRANTS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    is_held_out,
    sample_scene,
)
from emu_jax.demo.world.stories import next_step, sample_in_context, sample_page, sample_storyboard

T = TypeVar("T", bound=Hashable)

# What the generator draws by probability; the tests compare these with sampled documents.
NUM_OBJECTS = {1: 0.7, 2: 0.2, 3: 0.1}
WORDLESS_START, CLOSING, CLOSINGS = 0.1, 0.2, 3  # of a storyboard
FILLER, LAST_FILLER, ODD_IMAGE, FILLERS = 0.6, 0.4, 1 / 8, 10  # of a page
DESCRIPTION = 1 / 3  # of a chat's first turn

_PIXEL = np.zeros((1, 1, 3), np.uint8)
TOKEN_DOCUMENTS = 4000


@dataclasses.dataclass(frozen=True)
class Entropy:
    """The floor of one kind of document.

    Attributes:
      nats: entropy of a document's text, given what precedes each part of it.
      tokens: text tokens of a document that count in the loss, on average.
      tokens_error: standard error of `tokens`.
    """

    nats: float
    tokens: float
    tokens_error: float

    @property
    def nats_per_token(self) -> float:
        """The lowest mean loss per token."""
        return self.nats / self.tokens


class _TooManyDraws(Exception):
    """A path is longer than allowed."""


class _Choices:
    """A generator whose `integers` follow a given list of outcomes, and which notes how many each draw had."""

    def __init__(self, path: tuple[int, ...], most: float) -> None:
        self.path, self.most = path, most
        self.sizes: list[int] = []

    def integers(self, low: int, high: int | None = None) -> int:
        """Return the outcome that the path has for this draw, the first one beyond its end."""
        first, size = (0, low) if high is None else (low, high - low)
        if len(self.sizes) == self.most:
            raise _TooManyDraws
        self.sizes.append(size)
        number = len(self.sizes) - 1
        return first + (self.path[number] if number < len(self.path) else 0)


def outcomes(draw: Callable[[Any], T], *, most_draws: float = math.inf) -> dict[T, float]:
    """Return outcome -> probability of a function that draws by `rng.integers` only, by running every path of it.

    A function that draws again until its outcome is accepted has endless paths: `most_draws` is the number of draws of
    an outcome accepted at once, longer paths are left out, and the rest is normalized.

    outcomes(lambda rng: int(rng.integers(2)) + int(rng.integers(2))) -> {0: 0.25, 1: 0.5, 2: 0.25}
    """
    found: dict[T, float] = defaultdict(float)
    pending: list[tuple[int, ...]] = [()]
    while pending:
        path = pending.pop()
        rng = _Choices(path, most_draws)
        try:
            outcome = draw(rng)
        except _TooManyDraws:
            if len(rng.sizes) > len(path):
                pending += [(*path, choice) for choice in range(rng.sizes[len(path)])]
            continue
        if len(rng.sizes) == len(path):
            found[outcome] += math.prod(1 / size for size in rng.sizes)
        else:
            pending += [(*path, choice) for choice in range(rng.sizes[len(path)])]
    total = math.fsum(found.values())
    return {outcome: p / total for outcome, p in found.items()}


def entropy(probabilities: Mapping[Any, float]) -> float:
    """Return the Shannon entropy in nats."""
    return -math.fsum(p * math.log(p) for p in probabilities.values() if p > 0)


def binary_entropy(p: float) -> float:
    """Return the entropy of an event of probability `p`, in nats."""
    return entropy({True: p, False: 1 - p})


def objects(locations: tuple = LOCATIONS) -> list[Object]:
    """Return every object of the training split at these locations."""
    everything = itertools.product(SHAPES, COLORS, SIZES, locations)
    return [item for item in (Object(*values) for values in everything) if not is_held_out(item)]


def scene_entropy(num_objects: int) -> float:
    """Return the entropy of a training scene with so many objects."""
    return entropy(object_sets(num_objects)) + num_objects * math.log(len(SIZES)) + math.log(len(BACKGROUNDS))


def object_sets(num_objects: int) -> dict[frozenset, float]:
    """Return set of (shape, color, location) -> probability; sizes and background are independent of it and uniform."""
    locations = LOCATIONS if num_objects == 1 else QUADRANTS
    triples = list({(item.shape, item.color, item.location) for item in objects(locations)})

    def sequences(chosen: tuple, probability: float) -> Iterator[tuple[tuple, float]]:
        if len(chosen) == num_objects:
            yield chosen, probability
            return
        used_locations, used_things = {c[2] for c in chosen}, {c[:2] for c in chosen}
        free = [t for t in triples if t[2] not in used_locations and t[:2] not in used_things]
        for triple in free:
            yield from sequences((*chosen, triple), probability / len(free))

    found: dict[frozenset, float] = defaultdict(float)
    for chosen, probability in sequences((), 1.0):
        found[frozenset(chosen)] += probability
    return dict(found)


def wording_entropy(num_objects: int) -> float:
    """Return the entropy of the caption of a scene with so many objects, which is the same for all of them."""
    used: list[Object] = []
    for item in objects(QUADRANTS):
        if all(item.location != one.location and (item.color, item.shape) != (one.color, one.shape) for one in used):
            used.append(item)
    scene = Scene(tuple(sorted(used[:num_objects], key=lambda item: LOCATIONS.index(item.location))), BACKGROUNDS[0])
    return entropy(outcomes(functools.partial(caption, scene)))


def caption_entropy(*, image_first: bool) -> float:
    """Return the entropy of a caption, after or before its image."""
    return math.fsum(
        p * (wording_entropy(count) + (0.0 if image_first else scene_entropy(count)))
        for count, p in NUM_OBJECTS.items()
    ) + (0.0 if image_first else entropy(NUM_OBJECTS))


def clips() -> dict[Clip, float]:
    """Return every clip of the training split with its probability."""
    return outcomes(sample_clip, most_draws=6)


def video_entropy(*, image_first: bool) -> float:
    """Return the entropy of a clip's caption, after or before its frames; it does not name the clip's row or column."""
    if image_first:
        return entropy(outcomes(functools.partial(clip_caption, next(iter(clips())))))
    found: dict[str, float] = defaultdict(float)
    for clip, of_clip in clips().items():
        for text, probability in outcomes(functools.partial(clip_caption, clip)).items():
            found[text] += of_clip * probability
    return entropy(found)


def storyboard_entropy() -> float:
    """Return the entropy of a storyboard's subtitles, each given the frames and subtitles before it."""
    items = objects()
    start = math.log(len(items)) + math.log(len(BACKGROUNDS)) + wording_entropy(1)
    total = binary_entropy(WORDLESS_START) + (1 - WORDLESS_START) * start
    total += math.log(2)  # three frames or four
    total += binary_entropy(CLOSING) + CLOSING * math.log(CLOSINGS)
    now = dict.fromkeys(items, 1 / len(items))
    for happens in (1.0, 1.0, 0.5):  # the steps to the second, third and fourth frame
        after: dict[Object, float] = defaultdict(float)
        for item, probability in now.items():
            steps = allowed_steps(item)
            total += happens * probability * entropy(steps)
            for (following, _), p in steps.items():
                after[following] += probability * p
        now = after
    return total


def allowed_steps(item: Object) -> dict[tuple[Object, str], float]:
    """Return (next object, words) -> probability, without held-out objects."""
    steps = {step: p for step, p in outcomes(functools.partial(next_step, item)).items() if not is_held_out(step[0])}
    total = math.fsum(steps.values())
    return {step: p / total for step, p in steps.items()}


def page_entropy() -> float:
    """Return the entropy of a page's sentences, each given the sentences and images before it."""
    units = 2.5  # two or three images with their sentences
    caption_given_image = caption_entropy(image_first=True)
    trailing = {
        0: (1 - LAST_FILLER) * (1 - ODD_IMAGE),
        1: LAST_FILLER * (1 - ODD_IMAGE) + (1 - LAST_FILLER) * ODD_IMAGE,
        2: LAST_FILLER * ODD_IMAGE,
    }
    fillers = units * FILLER + math.fsum(count * p for count, p in trailing.items())
    structure = math.log(2) + units * binary_entropy(FILLER) + entropy(trailing)
    return structure + fillers * math.log(FILLERS) + units * caption_given_image


def answer_entropy() -> float:
    """Return the entropy of a chat's answers given image and questions: only a description has a choice of words."""
    return DESCRIPTION * caption_entropy(image_first=True)


KINDS: dict[str, tuple[Callable[[], float], Callable[[np.random.Generator], Document], float]] = {
    # name: (nats per document, sampler of a document, probability that the image precedes the text)
    "caption": (lambda: caption_entropy(image_first=True), lambda rng: _pair(rng), 1.0),
    "caption before image": (lambda: caption_entropy(image_first=False), lambda rng: _pair(rng), 0.0),
    "video": (lambda: video_entropy(image_first=True), lambda rng: _video(rng), 1.0),
    "caption before video": (lambda: video_entropy(image_first=False), lambda rng: _video(rng), 0.0),
    "page": (page_entropy, lambda rng: _page(rng), 1.0),
    "storyboard": (storyboard_entropy, lambda rng: _storyboard(sample_storyboard(rng)), 1.0),
    "in context": (lambda: 0.0, lambda rng: _storyboard(sample_in_context(rng).as_storyboard()), 1.0),
    "chat answers": (answer_entropy, lambda rng: _chat(rng), 1.0),
}


def entropy_of(kind: str, tokenizer: Tokenizer, *, num_image_tokens: int, seed: int = 0) -> Entropy:
    """Return the floor of a kind of document, one of KINDS."""
    nats, sample, image_first = KINDS[kind]
    config = SequenceConfig(
        length=4096,
        max_images=64,
        num_image_tokens=num_image_tokens,
        image_first=image_first,
        predict_boi=True,
    )
    rng = np.random.default_rng(seed)
    counts = np.array(
        [
            build_sequence(sample(rng), config=config, tokenizer=tokenizer, rng=rng).text_loss_mask.sum()
            for _ in range(TOKEN_DOCUMENTS)
        ]
    )
    return Entropy(nats(), float(counts.mean()), float(counts.std() / math.sqrt(len(counts))))


def _document(segments: list[Segment], layout: Layout) -> Document:
    return Document(tuple(segments), source="world", key="", layout=layout)


def _pair(rng: np.random.Generator) -> Document:
    return _document([Image(_PIXEL), Text(caption(sample_scene(rng), rng))], Layout.PAIR)


def _video(rng: np.random.Generator) -> Document:
    frames = Video(tuple(Image(_PIXEL) for _ in range(4)))
    return _document([frames, Text(clip_caption(sample_clip(rng), rng))], Layout.VIDEO)


def _page(rng: np.random.Generator) -> Document:
    page = sample_page(rng)
    matched = {image.sentence for image in page.images if image.similarity > 0.32}
    segments: list[Segment] = []
    for number, sentence in enumerate(page.sentences):
        segments += [Image(_PIXEL)] if number in matched else []
        segments.append(Text(sentence))
    return _document(segments, Layout.PAGE)


def _storyboard(story: Any) -> Document:
    segments: list[Segment] = []
    for subtitle in story.subtitles:
        segments += [Text(subtitle)] if subtitle else []
        segments.append(Image(_PIXEL))
    segments += [Text(story.closing)] if story.closing else []
    return _document(segments, Layout.STORYBOARD)


def _chat(rng: np.random.Generator) -> Document:
    segments: list[Segment] = [Image(_PIXEL, Role.USER)]
    for question, answer in conversation(sample_scene(rng), rng):
        segments += [Text(question, Role.USER), Text(answer, Role.ASSISTANT)]
    return _document(segments, Layout.CHAT)
