"""Render scenes: supersampled signed distances, with small random variations as between photographs.

Lengths are fractions of the image's side, so a scene renders at any size. At 32 pixels a large object is about 15
pixels wide and a small one 10. Each rendering moves its objects by up to a pixel, scales them by up to 8%, tints them,
and adds pixel noise.
"""

from dataclasses import dataclass

import numpy as np

from emu_jax.demo.world.scenes import Background, Color, Location, Object, Scene, Shape, Size
from emu_jax.typing import Float, UInt8, typechecked

# (x, y) of each location's center; y points down.
CENTERS = {
    Location.TOP_LEFT: (0.255, 0.255),
    Location.TOP_RIGHT: (0.745, 0.255),
    Location.BOTTOM_LEFT: (0.255, 0.745),
    Location.BOTTOM_RIGHT: (0.745, 0.745),
    Location.CENTER: (0.5, 0.5),
}
RADII = {Size.SMALL: 0.15, Size.LARGE: 0.23}
COLOR_VALUES = {
    Color.RED: (220, 35, 40),
    Color.GREEN: (45, 165, 55),
    Color.BLUE: (45, 70, 225),
    Color.YELLOW: (245, 210, 40),
    Color.PURPLE: (150, 45, 180),
    Color.CYAN: (45, 200, 220),
}
BACKGROUND_VALUES = {Background.WHITE: 242, Background.BLACK: 14, Background.GRAY: 128}

_SUPERSAMPLES = 2
_TRIANGLE_HALF_BASE = 1.08  # the height is 2
_SQUARE_HALF = 1.0
_CROSS_ARM = 0.30  # half the width of an arm; its length is 1


@dataclass(frozen=True)
class Jitter:
    """Random variation of a rendering: half-widths of uniform distributions; `noise` is a standard deviation."""

    offset: float = 1 / 32
    scale: float = 0.08
    tint: float = 10.0
    brightness: float = 0.07
    background: float = 8.0
    noise: float = 3.0


JITTER = Jitter()
NO_JITTER = Jitter(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Sprite:
    """An object to render: center (x, y) and radius as fractions of the side, color 0..255."""

    shape: Shape
    center: tuple[float, float]
    radius: float
    color: tuple[float, float, float]


def make_sprite(item: Object, rng: np.random.Generator, *, jitter: Jitter = JITTER) -> Sprite:
    """Return a sprite of `item` with random offset, scale and tint."""
    dx, dy, scale, brightness, *tint = rng.uniform(-1.0, 1.0, 7)
    x, y = CENTERS[item.location]
    brightness = 1.0 + jitter.brightness * brightness
    red, green, blue = np.asarray(COLOR_VALUES[item.color]) * brightness + jitter.tint * np.asarray(tint)
    center = (float(x + jitter.offset * dx), float(y + jitter.offset * dy))
    return Sprite(
        item.shape,
        center,
        RADII[item.size] * float(1.0 + jitter.scale * scale),
        (float(red), float(green), float(blue)),
    )


def make_background(background: Background, rng: np.random.Generator, *, jitter: Jitter = JITTER) -> float:
    """Return the gray value of a background, 0..255."""
    return BACKGROUND_VALUES[background] + jitter.background * float(rng.uniform(-1.0, 1.0))


def signed_distance(shape: Shape, x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the distance to the edge of a shape of radius 1 at the origin, negative inside; near corners a bound."""
    if shape is Shape.CIRCLE:
        return np.sqrt(x * x + y * y) - 1.0
    x = np.abs(x)
    if shape is Shape.SQUARE:
        return np.maximum(x, np.abs(y)) - _SQUARE_HALF
    if shape is Shape.TRIANGLE:
        slope = np.hypot(2.0, _TRIANGLE_HALF_BASE)
        return np.maximum((2.0 / slope) * x - (_TRIANGLE_HALF_BASE / slope) * (y + 1.0), y - 1.0)
    y = np.abs(y)
    return np.maximum(np.minimum(x, y) - _CROSS_ARM, np.maximum(x, y) - 1.0)


def coverage(sprite: Sprite, *, size: int) -> Float[np.ndarray, "H W"]:
    """Return the fraction of each pixel that the sprite covers, float32."""
    mask = np.zeros((size, size), np.float32)
    rows, columns, inside = _window(sprite, size=size)
    mask[rows, columns] = inside
    return mask


def _window(sprite: Sprite, *, size: int) -> tuple[slice, slice, np.ndarray]:
    """Return the rows and columns that the sprite touches, and the coverage within them."""
    reach = 1.1 * sprite.radius + 1.0 / size
    bounds = []
    for center in sprite.center:
        low, high = int(np.floor((center - reach) * size)), int(np.ceil((center + reach) * size))
        bounds.append((min(max(low, 0), size), min(max(high, 0), size)))
    x, y = (
        ((np.arange(low * _SUPERSAMPLES, high * _SUPERSAMPLES) + 0.5) / (size * _SUPERSAMPLES) - center) / sprite.radius
        for (low, high), center in zip(bounds, sprite.center, strict=True)
    )
    distance = signed_distance(sprite.shape, x.astype(np.float32)[None, :], y.astype(np.float32)[:, None])
    samples = np.clip(0.5 - distance * np.float32(sprite.radius * size * _SUPERSAMPLES), 0.0, 1.0)
    samples = sum(samples[i::_SUPERSAMPLES] for i in range(_SUPERSAMPLES))
    inside = sum(samples[:, i::_SUPERSAMPLES] for i in range(_SUPERSAMPLES)) / np.float32(_SUPERSAMPLES**2)
    (left, right), (top, bottom) = bounds
    return slice(top, bottom), slice(left, right), inside


def draw(
    sprites: tuple[Sprite, ...], background: float, rng: np.random.Generator, *, size: int, noise: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image of the sprites, later ones on top, on a plain background, with pixel noise."""
    image = np.full((size, size, 3), background, np.float32)
    for sprite in sprites:
        rows, columns, mask = _window(sprite, size=size)
        image[rows, columns] += mask[:, :, None] * (np.asarray(sprite.color, np.float32) - image[rows, columns])
    if noise:
        image += np.float32(noise) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


@typechecked
def render(
    scene: Scene, rng: np.random.Generator, *, size: int = 32, jitter: Jitter = JITTER
) -> UInt8[np.ndarray, "H W 3"]:
    """Return one rendering of `scene`, `size` pixels per side; each call draws new variations from `rng`."""
    sprites = tuple(make_sprite(item, rng, jitter=jitter) for item in scene.objects)
    return draw(sprites, make_background(scene.background, rng, jitter=jitter), rng, size=size, noise=jitter.noise)
