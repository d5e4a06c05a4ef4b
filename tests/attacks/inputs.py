"""Damaged input files of every source, and damaged images and videos."""

from __future__ import annotations

import io
import random
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image

from emu_jax.data.images import DecodeError, decode
from emu_jax.data.sources import Rejected
from emu_jax.data.video import map_frames
from emu_jax.demo.world.media import encode_mp4
from emu_jax.errors import UserError
from tests.attacks.trial import Outcome, Trial
from tests.data.sources.makers import COUNT, MAKERS, pairs_of, read

# These files have no count of their records: without the last lines they are valid shorter files.
LINES = ("mmc4", "jsonl", "webvid")


def damage(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return the bytes with one kind of damage, and its description."""
    changed, at, length = bytearray(data), rng.randrange(len(data)), rng.randrange(1, 40)
    kind = rng.choice(("bytes", "bit", "removed", "repeated", "truncated", "zeros", "moved"))
    match kind:
        case "bytes":
            for _ in range(rng.randrange(1, 6)):
                changed[rng.randrange(len(data))] = rng.randrange(256)
        case "bit":
            changed[at] ^= 1 << rng.randrange(8)
        case "removed":
            del changed[at : at + length]
        case "repeated":
            changed[at:at] = changed[at : at + length]
        case "truncated":
            del changed[at:]
        case "zeros":
            changed[at : at + 20 * length] = bytes(len(changed[at : at + 20 * length]))
        case "moved":
            part = changed[at : at + length]
            del changed[at : at + length]
            to = rng.randrange(len(changed) + 1)
            changed[to:to] = part
    return bytes(changed), f"{kind} at {at}"


class DamagedInputs:
    """Files of a source: a document that is read has its own text and images, and what is missing is reported."""

    name = "damaged input files"

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.files: dict[str, tuple[Path, bytes]] = {}

    def attempt(self, rng: random.Random) -> Trial:
        source = rng.choice(sorted(MAKERS))
        if source not in self.files:
            folder = self.root / source
            folder.mkdir()
            path = MAKERS[source](folder)
            self.files[source] = (path, path.read_bytes())
        path, intact = self.files[source]
        data, kind = damage(intact, rng)
        path.write_bytes(data)
        description = f"{source}: {kind}"
        try:
            found = read(source, path)
        except UserError:
            return Trial(Outcome.REFUSED, description)
        rejected = [one for one in found if isinstance(one, Rejected)]
        if any(texts != images for texts, images in pairs_of(found)):
            return Trial(Outcome.WRONG, f"{description}: wrong pair")
        complete = source in LINES and data == intact[: len(data)]
        if len(found) - len(rejected) < COUNT and not rejected and not complete and len(data) > 0:
            return Trial(Outcome.WRONG, f"{description}: documents were lost without a report")
        return Trial(Outcome.RIGHT, description)


class DamagedMedia:
    """Images and videos: pixels of the right type, or DecodeError."""

    name = "damaged images and videos"

    def __init__(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
        self.images = []
        for kind, options in (
            ("PNG", {}),
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("WEBP", {}),
            ("GIF", {}),
            ("BMP", {}),
        ):
            file = io.BytesIO()
            PIL.Image.fromarray(pixels).save(file, kind, **options)
            self.images.append((kind, file.getvalue()))
        self.video = encode_mp4(np.stack([pixels] * 4), fps=4)

    def attempt(self, rng: random.Random) -> Trial:
        if rng.random() < 0.2:
            data, kind = damage(self.video, rng)
            try:
                map_frames(data, lambda frame: frame.shape, frames=2)
            except DecodeError:
                return Trial(Outcome.REFUSED, f"MP4: {kind}")
            return Trial(Outcome.RIGHT, f"MP4: {kind}")
        name, intact = rng.choice(self.images)
        data, kind = damage(intact, rng)
        try:
            pixels = decode(data)
        except DecodeError:
            return Trial(Outcome.REFUSED, f"{name}: {kind}")
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        return Trial(Outcome.RIGHT, f"{name}: {kind}")
