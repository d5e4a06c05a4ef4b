"""A rule-based classifier that recovers the scene of an image and grades generated images.

It uses image analysis without learned parameters. The background is the median of the border. Every pixel is modeled as
a blend of the background and one of the six colors, and connected pixels of one color form an object. Its shape is the
one whose rendering with the object's center of mass and area has the largest overlap. If no sharp rendering fits well,
blurred ones are compared too, so that images from a diffusion decoder can be graded.
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
    LOCATIONS,
    SHAPES,
    Background,
    Color,
    Location,
    Scene,
    Shape,
    Size,
)
from emu_jax.typing import UInt8, typechecked

Option = TypeVar("Option")


@dataclass(frozen=True)
class DetectedObject:
    """A detected object: `area` as a fraction of the image, `fit` its overlap with a rendering of its shape, 0..1."""

    shape: Shape
    color: Color
    size: Size
    location: Location
    area: float
    fit: float


@dataclass(frozen=True)
class DetectedScene:
    """Detected objects in the order of their locations, and the background."""

    objects: tuple[DetectedObject, ...]
    background: Background

    @property
    def largest(self) -> DetectedObject | None:
        """The largest object, which ignores specks in an image of one object; None without objects."""
        return max(self.objects, key=lambda item: item.area, default=None)


def agreement(detected: DetectedScene, scene: Scene) -> dict[str, bool]:
    """Return for each attribute of a one-object `scene` if it was detected, and for color and shape together."""
    item = detected.largest
    correct = {
        name: item is not None and getattr(item, name) is getattr(scene.object, name) for name in ATTRIBUTES[:-1]
    }
    correct["background"] = detected.background is scene.background
    correct["color_and_shape"] = correct["color"] and correct["shape"]
    return correct


_PALETTE = np.array([COLOR_VALUES[color] for color in COLORS], np.float32)
_MIDDLE_RADIUS = float(np.sqrt(RADII[Size.SMALL] * RADII[Size.LARGE]))
_MIN_AREA = 0.4 * 37 / 32**2  # of the image: 0.4 of a small cross, the smallest object
_GOOD_FIT = 0.9
_MIN_FIT = 0.5  # below it the pixels have a color but no shape
_SHARP, _BLURS = (0.0,), (0.0, 0.5, 0.75, 1.0, 1.3)  # standard deviations, in 1/32 of the side
_NEIGHBORS = np.ones((3, 3), bool)


def _measure(shape: Shape) -> tuple[float, float]:
    """Return the area over the squared radius, and the distance of the center of mass below the center, in radii."""
    mask = coverage(Sprite(shape, (0.5, 0.5), 0.25, (0.0, 0.0, 0.0)), size=256)
    below = float((mask.sum(axis=1) * (np.arange(256) + 0.5)).sum() / mask.sum() / 256 - 0.5)
    return float(mask.sum()) / 256**2 / 0.25**2, below / 0.25


_MEASURES = {shape: _measure(shape) for shape in SHAPES}


def _nearest(values: dict[Option, tuple], point) -> Option:
    return min(values, key=lambda key: math.dist(values[key], point))


def _unmix(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return the fraction of each of the K colors in each pixel, [K H W]: 0 except for the best-fitting color."""
    toward = _PALETTE - background
    offset = pixels - background
    fraction = np.clip(np.einsum("hwc,kc->khw", offset, toward) / np.square(toward).sum(1)[:, None, None], 0.0, 1.0)
    residual = np.square(offset[None] - fraction[..., None] * toward[:, None, None]).sum(-1)
    return np.where(np.arange(len(COLORS))[:, None, None] == residual.argmin(0), fraction, 0.0)


def _split_neighbors(labels: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Split regions longer than any object (two touching objects of one color) at the middle of the image."""
    longest = 2.4 * RADII[Size.LARGE] * labels.shape[0]
    half = labels.shape[0] // 2
    for index, region in enumerate(scipy.ndimage.find_objects(labels, count), start=1):
        for axis in (0, 1):
            if region[axis].stop - region[axis].start > longest:
                second = labels == index
                second[(slice(None, half), slice(None))[:: 1 if axis == 0 else -1]] = False
                count += 1
                labels[second] = count
    return labels, count


def _fits(fraction: np.ndarray, *, area: float, x: float, y: float, blurs: tuple[float, ...]):
    """Yield (overlap, shape, radius, center) of each shape at each blur, rendered with this center of mass and area."""
    side = fraction.shape[0]
    for shape in SHAPES:
        unit_area, below = _MEASURES[shape]
        radius = float(np.sqrt(area / unit_area)) / side
        center = (x, y - below * radius)
        drawn = coverage(Sprite(shape, center, radius, (0.0, 0.0, 0.0)), size=side)
        for blur in blurs:
            soft = scipy.ndimage.gaussian_filter(drawn, blur * side / 32) if blur else drawn
            yield float(np.minimum(soft, fraction).sum() / np.maximum(soft, fraction).sum()), shape, radius, center


def _detect(pixels: np.ndarray, background: np.ndarray, region: np.ndarray, others: np.ndarray) -> DetectedObject:
    """Return the object whose certain pixels are `region`; `others` are the certain pixels of the other objects."""
    side = pixels.shape[0]
    core = scipy.ndimage.binary_erosion(region)
    color = np.median(pixels[core if core.sum() >= 4 else region], axis=0)
    toward = color - background
    near = scipy.ndimage.binary_dilation(region, _NEIGHBORS, iterations=2) & ~others
    fraction = np.clip((pixels - background) @ toward / max(float(toward @ toward), 1.0), 0.0, 1.0)
    fraction = np.where(near & (fraction > 0.12), fraction, 0.0)
    area = float(fraction.sum())
    grid = (np.arange(side) + 0.5) / side
    moments = {"area": area, "x": float(fraction.sum(0) @ grid) / area, "y": float(fraction.sum(1) @ grid) / area}
    fit, shape, radius, center = max(_fits(fraction, **moments, blurs=_SHARP), key=lambda found: found[0])
    if fit < _GOOD_FIT:
        fit, shape, radius, center = max(_fits(fraction, **moments, blurs=_BLURS), key=lambda found: found[0])
    size = Size.LARGE if radius > _MIDDLE_RADIUS else Size.SMALL
    return DetectedObject(shape, _nearest(COLOR_VALUES, color), size, _nearest(CENTERS, center), area / side**2, fit)


@typechecked
def classify_scene(image: UInt8[np.ndarray, "H H 3"]) -> DetectedScene:
    """Return the objects and the background of a square image of any size; a plain image has no objects."""
    pixels = image.astype(np.float32)
    side = image.shape[0]
    width = max(1, side // 32)
    inner = np.zeros((side, side), bool)
    inner[width:-width, width:-width] = True
    background = np.median(pixels[~inner], axis=0)
    certain = _unmix(pixels, background) > 0.5
    regions = []
    for mask in certain:
        if mask.sum() >= _MIN_AREA * side**2:
            labels, count = _split_neighbors(*scipy.ndimage.label(mask, _NEIGHBORS))
            regions += [labels == index for index in range(1, count + 1)]
    regions = [region for region in regions if region.sum() >= _MIN_AREA * side**2]
    union = np.any(regions, axis=0) if regions else None
    objects = [_detect(pixels, background, region, union & ~region) for region in regions]
    objects = [item for item in objects if item.fit >= _MIN_FIT]
    objects.sort(key=lambda item: LOCATIONS.index(item.location))
    nearest = min(BACKGROUNDS, key=lambda item: abs(BACKGROUND_VALUES[item] - float(background.mean())))
    return DetectedScene(tuple(objects), nearest)
