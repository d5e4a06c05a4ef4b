"""Whole files or none: atomic writing, and pictures, clips and tars as bytes."""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import av
import numpy as np
import PIL.Image

from emu_jax.typing import UInt8, typechecked


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that bears its name only once it is whole; left unfinished it goes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as file:
        file.write(data)


@typechecked
def encode_jpeg(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Quality 95 (img2dataset's default) and full colour resolution: halved, it would smear shapes of eight pixels."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@typechecked
def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


@typechecked
def encode_mp4(frames: UInt8[np.ndarray, "T H W 3"], *, fps: int) -> bytes:
    """An H.264 film in yuv420p, as stock footage comes; the same frames give the same bytes. Sides must be even."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "14", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def add_sample(archive: tarfile.TarFile, key: str, parts: dict[str, bytes]) -> None:
    """One webdataset sample: `KEY.part` for each part, in the order of their names, without dates or owners."""
    for part in sorted(parts):
        member = tarfile.TarInfo(f"{key}.{part}")
        member.size, member.mode = len(parts[part]), 0o444
        archive.addfile(member, io.BytesIO(parts[part]))
