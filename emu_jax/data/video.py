"""Frames of a video: decoded with PyAV, taken evenly or at random."""

import io
import os
from collections.abc import Sequence

import av
import numpy as np

from emu_jax.data.images import DecodeError, resize
from emu_jax.typing import Int, UInt8, typechecked

MAX_FRAMES = 100_000  # half an hour at 60 frames a second


@typechecked
def uniform_indices(count: int, frames: int) -> Int[np.ndarray, "T"]:
    """`frames` of `count` frames, evenly spread as in the release.

    From int(seg / 2) in steps of seg = (count - 1) / T.

    A video shorter than that repeats frames.

        uniform_indices(37, 8) -> [2, 6, 11, 16, 20, 24, 29, 34]
    """
    segment = (count - 1) / frames
    return int(segment / 2) + np.round(segment * np.arange(frames)).astype(np.int64)


@typechecked
def random_indices(count: int, frames: int, rng: np.random.Generator) -> Int[np.ndarray, "T"]:
    """One frame at random of each of `frames` equal stretches, so in time order."""
    edges = np.linspace(0, count, frames + 1)
    return np.minimum(np.floor(rng.uniform(edges[:-1], edges[1:])).astype(np.int64), count - 1)


def take_frames(
    video: bytes | str | os.PathLike,
    *,
    frames: int = 8,
    size: int | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[UInt8[np.ndarray, "H W 3"], ...]:
    """`frames` frames of an encoded video, evenly spread or, with `rng`, at random, resized to `size` where given.

    Raises:
      DecodeError: not a video, no video stream, or no frame that can be decoded.
    """
    count = _count(video)
    taken, decoded = _decode(video, _indices(count, frames, rng), size=size)
    if decoded == 0:
        raise DecodeError("the video has no frames")
    if decoded < count:  # the container promised more than can be decoded
        taken, _ = _decode(video, _indices(decoded, frames, rng), size=size)
    return taken


def pick_frames(frames: Sequence, *, count: int, rng: np.random.Generator | None = None) -> tuple:
    """`count` of frames already taken (all, where there are no more than that), evenly or, with `rng`, at random."""
    if len(frames) <= count:
        return tuple(frames)
    return tuple(frames[i] for i in _indices(len(frames), count, rng))


def _indices(count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    if frames < 1:
        raise DecodeError(f"{frames} frames were asked for; ask for at least one")
    return uniform_indices(count, frames) if rng is None else random_indices(count, frames, rng)


def _open(video: bytes | str | os.PathLike):
    file = io.BytesIO(video) if isinstance(video, bytes) else os.fspath(video)
    try:
        container = av.open(file, mode="r")
    except Exception as error:  # PyAV has an exception for each error number of FFmpeg
        raise DecodeError(f"the file is not a video that can be read ({type(error).__name__}: {error})") from None
    if not container.streams.video:
        container.close()
        raise DecodeError("the file has no video in it")
    return container


def _count(video: bytes | str | os.PathLike) -> int:
    """Packets, without decoding them: containers often do not know their number of frames."""
    with _open(video) as container:
        try:
            count = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
        except Exception as error:
            raise DecodeError(f"the video cannot be read ({type(error).__name__}: {error})") from None
    if count == 0:
        raise DecodeError("the video has no frames")
    if count > MAX_FRAMES:
        raise DecodeError(f"the video has {count} frames; at most {MAX_FRAMES} are read")
    return count


def _decode(video: bytes | str | os.PathLike, indices: np.ndarray, *, size: int | None) -> tuple[tuple, int]:
    """The frames of the sorted `indices`; or none, and how many there are, where they end before the last index."""
    wanted, last = set(indices.tolist()), int(indices[-1])
    kept: dict[int, np.ndarray] = {}
    decoded = 0
    with _open(video) as container:
        try:
            for frame in container.decode(container.streams.video[0]):
                if decoded in wanted:
                    pixels = frame.to_ndarray(format="rgb24")
                    kept[decoded] = pixels if size is None else resize(pixels, size)
                decoded += 1
                if decoded > last:
                    return tuple(kept[i] for i in indices.tolist()), MAX_FRAMES
        except Exception:
            if decoded == 0:
                raise DecodeError("no frame of the video can be decoded") from None
    return (), decoded
