"""Captions of scenes, and a parser that recovers the scene from a caption.

    >>> scene = Scene((Object(Shape.CIRCLE, Color.RED, Size.LARGE, Location.TOP_LEFT),), Background.WHITE)
    >>> "a large red circle at the top left on a white background" in captions(scene)
    True

Every caption names every attribute, so a scene can be recovered from any of its captions. `caption` names objects in
reading order; `captions`, which scores a model, allows every order.
"""

import itertools
import re
from dataclasses import dataclass

import numpy as np

from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    LOCATIONS,
    SHAPES,
    SIZES,
    Background,
    Color,
    Location,
    Object,
    Scene,
    Shape,
    Size,
    choose,
)

_ANY_NUMBER = (
    "{objects} on a {background} background",
    "on a {background} background, {objects}",
    "a {background} background with {objects}",
    "there is {objects}, the background is {background}",
)
_ONE_OBJECT = (*_ANY_NUMBER, "{location} of a {background} background, a {thing}")


def name(item: Object) -> str:
    """Return for example "large red circle"."""
    return f"{item.size.value} {item.color.value} {item.shape.value}"


def where(location: Location) -> str:
    """Return for example "at the top left" or "in the center"."""
    return f"{'in' if location is Location.CENTER else 'at'} the {location.value}"


def phrase(item: Object) -> str:
    """Return for example "a large red circle at the top left"."""
    return f"a {name(item)} {where(item.location)}"


def _join(parts) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _fill(template: str, objects: tuple[Object, ...], background: Background) -> str:
    return template.format(
        objects=_join([phrase(item) for item in objects]),
        background=background.value,
        location=where(objects[0].location),
        thing=name(objects[0]),
    )


def _templates(scene: Scene) -> tuple[str, ...]:
    return _ONE_OBJECT if len(scene.objects) == 1 else _ANY_NUMBER


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a correct caption with its objects in reading order."""
    return _fill(choose(rng, _templates(scene)), scene.objects, scene.background)


def captions(scene: Scene) -> frozenset[str]:
    """Return all correct captions, in every order of the objects: 5 for one object, 8 for two, 24 for three."""
    return frozenset(
        _fill(template, objects, scene.background)
        for template in _templates(scene)
        for objects in itertools.permutations(scene.objects)
    )


def normalize(text: str) -> str:
    """Return `text` in the form of `captions`: lower case, single spaces, no period at the end."""
    return " ".join(text.lower().split()).rstrip(" .")


def is_correct_caption(text: str, scene: Scene) -> bool:
    """Return True if `text`, normalized, is one of the captions of `scene`."""
    return normalize(text) in captions(scene)


@dataclass(frozen=True)
class ParsedObject:
    """The attributes that a text gives one object; None for those that it omits."""

    shape: Shape | None = None
    color: Color | None = None
    size: Size | None = None
    location: Location | None = None


@dataclass(frozen=True)
class ParsedCaption:
    """The objects and the background that a text names."""

    objects: tuple[ParsedObject, ...]
    background: Background | None


_BACKGROUND = re.compile(
    r"\b(?:({names}) background|background is ({names}))\b".format(names="|".join(b.value for b in BACKGROUNDS))
)
_WORDS = {
    item.value: (kind, item)
    for kind, items in (("location", LOCATIONS), ("size", SIZES), ("color", COLORS), ("shape", SHAPES))
    for item in items
}
_TOKEN = re.compile(r"\b(?:" + "|".join([*_WORDS, "and"]) + r")\b|,")


def parse_caption(text: str) -> ParsedCaption | None:
    """Return the objects and the background that `text` names, or None if it names no object.

    Accepts captions of this grammar and a model's partly correct ones, where attributes may be missing or repeated. A
    new object begins at an attribute that the current one already has, and after a comma or "and" that follows a shape.
    """
    text = normalize(text)
    found = _BACKGROUND.search(text)
    background = Background(found.group(1) or found.group(2)) if found else None
    groups: list[dict] = [{}]
    for token in _TOKEN.findall(_BACKGROUND.sub(" ", text)):
        kind, item = _WORDS.get(token, (None, None))
        if kind is None:
            if "shape" in groups[-1]:
                groups.append({})
        elif kind in groups[-1]:
            groups.append({kind: item})
        else:
            groups[-1][kind] = item
    objects = tuple(ParsedObject(**group) for group in groups if group)
    return ParsedCaption(objects, background) if objects else None


ATTRIBUTES = ("shape", "color", "size", "location", "background")


def score_attributes(text: str, scene: Scene) -> dict[str, float]:
    """Return the fraction of objects whose shape, color, ... is correct in `text`, for the best matching of objects.

    The denominator is the larger of the two numbers of objects, so that added objects lower the score.
    """
    parsed = parse_caption(text)
    if parsed is None:
        return dict.fromkeys(ATTRIBUTES, 0.0)
    kinds = ATTRIBUTES[:-1]
    named = parsed.objects[:4] + (ParsedObject(),) * max(0, len(scene.objects) - len(parsed.objects))
    best = max(
        (
            [
                [getattr(a, kind) is getattr(b, kind) for kind in kinds]
                for a, b in zip(order, scene.objects, strict=False)
            ]
            for order in itertools.permutations(named, len(scene.objects))
        ),
        key=lambda hits: sum(map(sum, hits)),
    )
    count = max(len(parsed.objects), len(scene.objects))
    scores = {kind: sum(hits) / count for kind, hits in zip(kinds, zip(*best, strict=True), strict=True)}
    return {**scores, "background": float(parsed.background is scene.background)}
