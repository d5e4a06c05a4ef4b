"""Images, clips and tar members as bytes."""

import io
import tarfile

import av
import numpy as np
import PIL.Image

from emu_jax.typing import UInt8, typechecked


@typechecked
def encode_jpeg(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Return a JPEG of quality 95 (img2dataset's default) without chroma subsampling, which would blur small shapes."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@typechecked
def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Return a PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


@typechecked
def encode_mp4(frames: UInt8[np.ndarray, "T H W 3"], *, fps: int) -> bytes:
    """Return an H.264 video in yuv420p, the usual format of stock footage. Sides must be even.

    Equal frames give equal bytes. This requires x264 without its assembly code, whose results vary between runs.
    """
    buffer = io.BytesIO()
    options = {"crf": "14", "preset": "veryfast", "threads": "1", "x264-params": "no-asm=1"}
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def add_sample(archive: tarfile.TarFile, key: str, parts: dict[str, bytes]) -> None:
    """Add a webdataset sample: a member `KEY.part` for each part, sorted by name, without dates or owners."""
    for part in sorted(parts):
        member = tarfile.TarInfo(f"{key}.{part}")
        member.size, member.mode = len(parts[part]), 0o444
        archive.addfile(member, io.BytesIO(parts[part]))
