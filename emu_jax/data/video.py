"""Decode frames of a video with PyAV, evenly spaced or at random."""

import io
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from emu_jax.data.bad_data import DecodeError
from emu_jax.data.images import check_size, resize
from emu_jax.data.limits import DEFAULT_LIMITS, Limits
from emu_jax.data.regular_files import read_regular_file
from emu_jax.typing import Int, UInt8, typechecked

# Containers that hold their data themselves. Others (SDP, HLS, concat scripts) name URLs and files to open.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,ogg,asf,gif"

FrameT = TypeVar("FrameT")


@typechecked
def uniform_indices(count: int, frames: int) -> Int[np.ndarray, "T"]:
    """Return the indices of `frames` evenly spaced frames of `count`, as in the release.

    They start at int(seg / 2) and go in steps of seg = (count - 1) / T. A video with fewer frames repeats some.

        uniform_indices(37, 8) -> [2, 6, 11, 16, 20, 24, 29, 34]
    """
    segment = (count - 1) / frames
    return int(segment / 2) + np.round(segment * np.arange(frames)).astype(np.int64)


@typechecked
def random_indices(count: int, frames: int, rng: np.random.Generator) -> Int[np.ndarray, "T"]:
    """Return one random index from each of `frames` equal intervals, in time order."""
    edges = np.linspace(0, count, frames + 1)
    return np.minimum(np.floor(rng.uniform(edges[:-1], edges[1:])).astype(np.int64), count - 1)


def take_frames(
    video: bytes | str | os.PathLike,
    *,
    frames: int = 8,
    size: int | None = None,
    rng: np.random.Generator | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[UInt8[np.ndarray, "H W 3"], ...]:
    """Decode `frames` frames of a video: evenly spaced, or random with `rng`; resized to `size` if given.

    Frames are rotated as the video's display matrix says.

    Raises:
      DecodeError: not a video, no video stream, no decodable frame, or one that exceeds `limits`.
    """
    return map_frames(
        video, lambda frame: frame if size is None else resize(frame, size), frames=frames, rng=rng, limits=limits
    )


def map_frames(
    video: bytes | str | os.PathLike,
    convert: Callable[[UInt8[np.ndarray, "H W 3"]], FrameT],
    *,
    frames: int,
    rng: np.random.Generator | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[FrameT, ...]:
    """Decode frames as `take_frames` does and return the result of `convert` for each, one frame in memory at a time.

    Raises:
      DecodeError: as `take_frames`.
    """
    data = video if isinstance(video, bytes) else _read(video, limits)
    deadline = time.monotonic() + limits.record_seconds
    count = _count_packets(data, limits, deadline)
    decoded, found = _decode(data, _indices(count, frames, rng), convert, limits, deadline)
    if decoded == 0:
        raise DecodeError("no frame of the video can be decoded")
    if found is None:  # the container lists more frames than can be decoded
        _, found = _decode(data, _indices(decoded, frames, rng), convert, limits, deadline)
    if found is None:
        raise DecodeError("the video cannot be decoded twice in the same way")
    return found


def pick_frames(frames: Sequence, *, count: int, rng: np.random.Generator | None = None) -> tuple:
    """Select `count` of already decoded frames (all, if there are at most `count`): evenly, or random with `rng`."""
    if len(frames) <= count:
        return tuple(frames)
    return tuple(frames[i] for i in _indices(len(frames), count, rng))


def _indices(count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    if frames < 1:
        raise DecodeError(f"{frames} frames were requested; request at least one")
    return uniform_indices(count, frames) if rng is None else random_indices(count, frames, rng)


def _read(path: str | os.PathLike, limits: Limits) -> bytes:
    try:
        return read_regular_file(Path(path), max_bytes=limits.file_bytes)
    except OSError as error:
        raise DecodeError(f"{os.fspath(path)} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DecodeError(f"{os.fspath(path)!r} cannot be read ({error})") from None


def _open(data: bytes, limits: Limits) -> tuple[Any, Any]:
    """Open a video, without access to the network or to other files, and return its container and its video stream."""
    # FFmpeg opens nothing but the bytes: no protocol has the name "none".
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
    try:
        container = av.open(io.BytesIO(data), mode="r", container_options=options)
    except Exception as error:  # PyAV has one exception type per FFmpeg error number
        raise DecodeError("the file is not a video that can be read", f"{type(error).__name__}: {error}") from None
    try:
        stream = _video_stream(container)
        if stream.width and stream.height:
            check_size(stream.width, stream.height, limits)
        stream.codec_context.options = {"max_pixels": str(limits.image_pixels)}
    except DecodeError:
        container.close()
        raise
    return container, stream


def _video_stream(container: Any) -> Any:
    """Return the default video stream that can be decoded and is not a cover image."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError("the file has no video stream")
    streams = [s for s in streams if s.codec_context is not None]
    if not streams:
        raise DecodeError("the video has an unknown codec")
    return max(streams, key=lambda s: bool(s.disposition & Disposition.default))


def _count_packets(data: bytes, limits: Limits, deadline: float) -> int:
    """Count packets without decoding them: containers often do not store their number of frames."""
    container, stream = _open(data, limits)
    count = 0
    with container:
        try:
            for packet in container.demux(stream):
                count += bool(packet.size)
                if count > limits.video_frames:
                    raise DecodeError("the video has too many frames", f"at most {limits.video_frames}")
                _check_time(deadline, limits)
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError("the video cannot be read", f"{type(error).__name__}: {error}") from None
    if count == 0:
        raise DecodeError("the video has no frames")
    return count


def _decode(
    data: bytes, indices: np.ndarray, convert: Callable[[np.ndarray], FrameT], limits: Limits, deadline: float
) -> tuple[int, tuple[FrameT, ...] | None]:
    """Decode up to the last of the sorted `indices`.

    Returns the number of decoded frames, and the converted ones; None if the video ends before the last index.
    """
    selected, last = set(indices.tolist()), int(indices[-1])
    converted: dict[int, FrameT] = {}
    decoded = 0
    for frame in _frames(data, limits, deadline):
        if decoded in selected:
            check_size(frame.width, frame.height, limits)
            converted[decoded] = convert(_upright(frame))
        decoded += 1
        if decoded > last:
            return decoded, tuple(converted[i] for i in indices.tolist())
    return decoded, None


def _frames(data: bytes, limits: Limits, deadline: float) -> Iterator[Any]:
    """Yield the frames that can be decoded."""
    container, stream = _open(data, limits)
    with container:
        frames = container.decode(stream)
        while True:
            try:
                frame = next(frames, None)
            except Exception:
                return
            if frame is None:
                return
            _check_time(deadline, limits)
            yield frame


def _upright(frame: Any) -> np.ndarray:
    """Return the RGB pixels of a frame, rotated and mirrored by its display matrix."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack("<5i", bytes(matrix)[:20])
    if abs(b) > abs(a):  # a quarter turn: x' = c y, y' = b x
        pixels = pixels.transpose(1, 0, 2)
        horizontal, vertical = c, b
    else:
        horizontal, vertical = a, d
    if horizontal < 0:
        pixels = pixels[:, ::-1]
    if vertical < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _check_time(deadline: float, limits: Limits) -> None:
    if time.monotonic() > deadline:
        raise DecodeError("decoding takes too long", f"at most {limits.record_seconds} seconds")
