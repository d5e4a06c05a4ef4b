"""Reads a picture of the drawn world back: the judge of generated pictures.

Plain image analysis, nothing learned: the background is the median of the border, every pixel is explained as a blend
of it and one of the six colours, connected pixels of one colour are an object, and its shape is the one whose drawing
at the object's own centre and area overlaps it best. A picture that no sharp drawing fits well is compared with blurred
ones, so that pictures from a diffusion decoder can be judged too.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy.ndimage

from emu_jax.demo.world.grammar import ATTRIBUTES
from emu_jax.demo.world.rendering import BACKGROUND_VALUES, CENTERS, COLOR_VALUES, RADII, Sprite, coverage
from emu_jax.demo.world.scenes import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    SHAPES,
    Background,
    Color,
    Place,
    Scene,
    Shape,
    Size,
)
from emu_jax.typing import UInt8, typechecked

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class ReadObject:
    """An object as read: `area` is its part of the picture, `fit` its overlap with its shape's drawing, 0..1."""

    shape: Shape
    color: Color
    size: Size
    place: Place
    area: float
    fit: float


@dataclass(frozen=True)
class ReadScene:
    """Objects in reading order, by place."""

    objects: tuple[ReadObject, ...]
    background: Background

    @property
    def largest(self) -> ReadObject | None:
        """The object that a one-object picture is of, whatever specks lie about; None where there is no object."""
        return max(self.objects, key=lambda item: item.area, default=None)


def agreement(read: ReadScene, scene: Scene) -> dict[str, bool]:
    """Which attributes of a one-object `scene` the picture shows, and whether colour and shape are both right."""
    item = read.largest
    right = {kind: item is not None and getattr(item, kind) is getattr(scene.object, kind) for kind in ATTRIBUTES[:-1]}
    right["background"] = read.background is scene.background
    right["color_and_shape"] = right["color"] and right["shape"]
    return right


_PALETTE = np.array([COLOR_VALUES[color] for color in COLORS], np.float32)
_MIDDLE_RADIUS = float(np.sqrt(RADII[Size.SMALL] * RADII[Size.LARGE]))
_LEAST_AREA = 0.4 * 37 / 32**2  # of the picture: 0.4 of a small cross, the smallest thing there is
_GOOD_FIT = 0.9
_READABLE_FIT = 0.5  # below it there is paint but no shape
_SHARP, _BLURS = (0.0,), (0.0, 0.5, 0.75, 1.0, 1.3)  # deviations in pixels of 1/32 of the side
_NEIGHBORS = np.ones((3, 3), bool)


def _measure(shape: Shape) -> tuple[float, float]:
    """Area over squared radius, and how far below its centre in radii the shape's centre of mass lies."""
    mask = coverage(Sprite(shape, (0.5, 0.5), 0.25, (0.0, 0.0, 0.0)), size=256)
    below = float((mask.sum(axis=1) * (np.arange(256) + 0.5)).sum() / mask.sum() / 256 - 0.5)
    return float(mask.sum()) / 256**2 / 0.25**2, below / 0.25


_MEASURES = {shape: _measure(shape) for shape in SHAPES}


def _nearest(values: dict[Kind, tuple], point) -> Kind:
    return min(values, key=lambda key: math.dist(values[key], point))


def _explain(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """How much of each of the K colours each pixel shows, [K H W]: the best-fitting colour's share, the others 0."""
    toward = _PALETTE - background
    offset = pixels - background
    share = np.clip(np.einsum("hwc,kc->khw", offset, toward) / np.square(toward).sum(1)[:, None, None], 0.0, 1.0)
    rest = np.square(offset[None] - share[..., None] * toward[:, None, None]).sum(-1)
    return np.where(np.arange(len(COLORS))[:, None, None] == rest.argmin(0), share, 0.0)


def _split_neighbors(labels: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Cuts parts that are longer than any object at the middle of the picture: two of one colour that touch."""
    longest = 2.4 * RADII[Size.LARGE] * labels.shape[0]
    half = labels.shape[0] // 2
    for index, region in enumerate(scipy.ndimage.find_objects(labels, count), start=1):
        for axis in (0, 1):
            if region[axis].stop - region[axis].start > longest:
                beyond = labels == index
                beyond[(slice(None, half), slice(None))[:: 1 if axis == 0 else -1]] = False
                count += 1
                labels[beyond] = count
    return labels, count


def _fits(share: np.ndarray, *, area: float, x: float, y: float, blurs: tuple[float, ...]):
    """(overlap, shape, radius, centre) of each shape's drawing at each blur, its centre of mass and area given."""
    side = share.shape[0]
    for shape in SHAPES:
        unit_area, below = _MEASURES[shape]
        radius = float(np.sqrt(area / unit_area)) / side
        center = (x, y - below * radius)
        drawn = coverage(Sprite(shape, center, radius, (0.0, 0.0, 0.0)), size=side)
        for blur in blurs:
            soft = scipy.ndimage.gaussian_filter(drawn, blur * side / 32) if blur else drawn
            yield float(np.minimum(soft, share).sum() / np.maximum(soft, share).sum()), shape, radius, center


def _read_object(pixels: np.ndarray, background: np.ndarray, part: np.ndarray, others: np.ndarray) -> ReadObject:
    """The object whose certain pixels are `part`; `others` are the certain pixels of the other objects."""
    side = pixels.shape[0]
    core = scipy.ndimage.binary_erosion(part)
    color = np.median(pixels[core if core.sum() >= 4 else part], axis=0)
    toward = color - background
    around = scipy.ndimage.binary_dilation(part, _NEIGHBORS, iterations=2) & ~others
    share = np.clip((pixels - background) @ toward / max(float(toward @ toward), 1.0), 0.0, 1.0)
    share = np.where(around & (share > 0.12), share, 0.0)
    area = float(share.sum())
    grid = (np.arange(side) + 0.5) / side
    x, y = float(share.sum(0) @ grid) / area, float(share.sum(1) @ grid) / area
    fit, shape, radius, center = max(_fits(share, area=area, x=x, y=y, blurs=_SHARP), key=lambda found: found[0])
    if fit < _GOOD_FIT:
        fit, shape, radius, center = max(_fits(share, area=area, x=x, y=y, blurs=_BLURS), key=lambda found: found[0])
    size = Size.LARGE if radius > _MIDDLE_RADIUS else Size.SMALL
    return ReadObject(shape, _nearest(COLOR_VALUES, color), size, _nearest(CENTERS, center), area / side**2, fit)


@typechecked
def read_scene(image: UInt8[np.ndarray, "H H 3"]) -> ReadScene:
    """The objects and the background of a square picture of any size; no objects where nothing stands out."""
    pixels = image.astype(np.float32)
    side = image.shape[0]
    width = max(1, side // 32)
    inner = np.zeros((side, side), bool)
    inner[width:-width, width:-width] = True
    background = np.median(pixels[~inner], axis=0)
    shares = _explain(pixels, background)
    certain = shares > 0.5
    parts = []
    for mask in certain:
        if mask.sum() >= _LEAST_AREA * side**2:
            labels, count = _split_neighbors(*scipy.ndimage.label(mask, _NEIGHBORS))
            parts += [labels == index for index in range(1, count + 1)]
    parts = [part for part in parts if part.sum() >= _LEAST_AREA * side**2]
    everything = np.any(parts, axis=0) if parts else None
    objects = [_read_object(pixels, background, part, everything & ~part) for part in parts]
    objects = [item for item in objects if item.fit >= _READABLE_FIT]
    objects.sort(key=lambda item: PLACES.index(item.place))
    tone = min(BACKGROUNDS, key=lambda item: abs(BACKGROUND_VALUES[item] - float(background.mean())))
    return ReadScene(tuple(objects), tone)
