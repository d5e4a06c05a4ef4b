"""What is said of a scene, and what a text says: captions written and read back.

    >>> scene = Scene((Object(Shape.CIRCLE, Color.RED, Size.LARGE, Place.TOP_LEFT),), Background.WHITE)
    >>> "a large red circle at the top left on a white background" in captions(scene)
    True

Every caption names every attribute, so a scene can be read back from any of its captions. `caption` names objects in
reading order; `captions`, by which a model is scored, allows every order.
"""

import itertools
import re
from dataclasses import dataclass

import numpy as np

from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    Background,
    Color,
    Object,
    Place,
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
_ONE_OBJECT = (*_ANY_NUMBER, "{place} of a {background} background, a {thing}")


def name(item: Object) -> str:
    """`"large red circle"`."""
    return f"{item.size.value} {item.color.value} {item.shape.value}"


def where(place: Place) -> str:
    """`"at the top left"`; `"in the center"`."""
    return f"{'in' if place is Place.CENTER else 'at'} the {place.value}"


def phrase(item: Object) -> str:
    """`"a large red circle at the top left"`."""
    return f"a {name(item)} {where(item.place)}"


def _join(parts) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _fill(template: str, objects: tuple[Object, ...], background: Background) -> str:
    return template.format(
        objects=_join([phrase(item) for item in objects]),
        background=background.value,
        place=where(objects[0].place),
        thing=name(objects[0]),
    )


def _templates(scene: Scene) -> tuple[str, ...]:
    return _ONE_OBJECT if len(scene.objects) == 1 else _ANY_NUMBER


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One right caption, its objects in reading order."""
    return _fill(choose(rng, _templates(scene)), scene.objects, scene.background)


def captions(scene: Scene) -> frozenset[str]:
    """All right captions, in every order of the objects: 5 for one object, 8 for two, 24 for three."""
    return frozenset(
        _fill(template, objects, scene.background)
        for template in _templates(scene)
        for objects in itertools.permutations(scene.objects)
    )


def normalize(text: str) -> str:
    """Lower case, single spaces, no full stop at the end: what `captions` look like."""
    return " ".join(text.lower().split()).rstrip(" .")


def is_right_caption(text: str, scene: Scene) -> bool:
    """Exact match: `text` is one of the captions of `scene`."""
    return normalize(text) in captions(scene)


@dataclass(frozen=True)
class ParsedObject:
    """What a text says of one object; None where it says nothing."""

    shape: Shape | None = None
    color: Color | None = None
    size: Size | None = None
    place: Place | None = None


@dataclass(frozen=True)
class ParsedCaption:
    objects: tuple[ParsedObject, ...]
    background: Background | None


_BACKGROUND = re.compile(
    r"\b(?:({names}) background|background is ({names}))\b".format(names="|".join(b.value for b in BACKGROUNDS))
)
_WORDS = {
    item.value: (kind, item)
    for kind, items in (("place", PLACES), ("size", SIZES), ("color", COLORS), ("shape", SHAPES))
    for item in items
}
_TOKEN = re.compile(r"\b(?:" + "|".join([*_WORDS, "and"]) + r")\b|,")


def parse_caption(text: str) -> ParsedCaption | None:
    """What `text` says, as far as it can be read; None if it names no object.

    Made for captions of our grammar and for a model's half-right ones: attributes may be missing or repeated. A new
    object begins at an attribute that the present one already has, and after a comma or "and" that follows a shape.
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


ATTRIBUTES = ("shape", "color", "size", "place", "background")


def score_attributes(text: str, scene: Scene) -> dict[str, float]:
    """The share of each attribute that `text` has right, 0..1, for the kindest pairing of its objects with the scene's.

    Objects that the text adds count against it: the shares are of the larger number of objects.
    """
    parsed = parse_caption(text)
    if parsed is None:
        return dict.fromkeys(ATTRIBUTES, 0.0)
    kinds = ATTRIBUTES[:-1]
    said = parsed.objects[:4] + (ParsedObject(),) * max(0, len(scene.objects) - len(parsed.objects))
    best = max(
        (
            [
                [getattr(a, kind) is getattr(b, kind) for kind in kinds]
                for a, b in zip(order, scene.objects, strict=False)
            ]
            for order in itertools.permutations(said, len(scene.objects))
        ),
        key=lambda hits: sum(map(sum, hits)),
    )
    count = max(len(parsed.objects), len(scene.objects))
    scores = {kind: sum(hits) / count for kind, hits in zip(kinds, zip(*best, strict=True), strict=True)}
    return {**scores, "background": float(parsed.background is scene.background)}
