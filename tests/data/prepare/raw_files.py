"""Small input files of preparations."""

from emu_jax.data.prepare.cleaning import PrepareConfig
from tests.data.conftest import color_image, write_jsonl

CONFIG = PrepareConfig(source="jsonl", image_size=8, min_side=4)


def pair(n, text=None, image=None):
    return {"layout": "pair", "segments": [{"image": image or f"{n}.png"}, {"text": text or f"number {n}"}]}


def raw(folder, count=5, start=0, name="raw", extra=(), images=None):
    files = {f"{n}.png": color_image(n) for n in range(start, start + count)} | (images or {})
    return write_jsonl(folder, name, [*(pair(n) for n in range(start, start + count)), *extra], files)
