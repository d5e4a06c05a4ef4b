"""Noisy alternative texts in the style of web data (LAION-2B): incomplete, but never wrong."""

import numpy as np

from emu_jax.demo.world.grammar import caption, name, where
from emu_jax.demo.world.scenes import Object, Scene, choose

_SITES = ("shapesdaily.com", "clipartbin.net", "The Shape Shop", "Pinterest", "vectorpile.org", "Pictures and More")
_STOCK = ("stock photo", "royalty free clip art", "vector illustration", "stock image", "free download", "wallpaper")
_EXTENSIONS = (".jpg", ".png", ".jpeg", "")
_CAMERA = ("IMG_{}", "DSC0{}", "image{}", "picture-{}")


def _short(item: Object, rng: np.random.Generator) -> str:
    """Return the object's name, its size, color and location each omitted at random; the shape always stays."""
    words = [
        item.size.value if rng.random() < 0.6 else "",
        item.color.value if rng.random() < 0.85 else "",
        item.shape.value,
        choose(rng, (where(item.location), item.location.value)) if rng.random() < 0.5 else "",
    ]
    return " ".join(word for word in words if word)


def alt_text(scene: Scene, rng: np.random.Generator) -> str:
    """Return an alternative text: a caption, a short phrase, stock-photo text, shuffled words or a file name."""
    kind = rng.random()
    if kind < 0.30:
        text = caption(scene, rng)
    elif kind < 0.65:
        text = ", ".join(_short(item, rng) for item in scene.objects)
        if rng.random() < 0.4:
            text += f" on {scene.background.value}"
    elif kind < 0.80:
        text = f"{' and '.join(_short(item, rng) for item in scene.objects)} {choose(rng, _STOCK)}"
    elif kind < 0.90:
        words = " ".join([*(name(item) for item in scene.objects), scene.background.value]).split()
        text = " ".join(words[i] for i in rng.permutation(len(words)))
    elif kind < 0.97:
        text = choose(rng, "_-").join(name(scene.objects[0]).split()) + choose(rng, _EXTENSIONS)
    else:
        return choose(rng, _CAMERA).format(int(rng.integers(100, 1000))) + choose(rng, _EXTENSIONS)
    style = rng.random()
    if style < 0.08:
        text = text.upper()
    elif style < 0.25:
        text = text.capitalize()
    elif style < 0.32:
        text = text.title()
    if rng.random() < 0.15:
        text = f"{text}{choose(rng, (' | ', ' - '))}{choose(rng, _SITES)}"
    return text
