"""Bounds on untrusted files, checked before the work that they would cause."""

import dataclasses

from emu_jax.bounds import Checked, Count, NumBytes, Pixels, Positive


@dataclasses.dataclass(frozen=True)
class Limits(Checked):
    """Maximum sizes. A record that exceeds one is a reject.

    Attributes:
      image_side: pixels of the longer side of an image or video frame.
      image_pixels: pixels of an image or video frame; 50 million are 150 MB decoded.
      image_scans: scans of a progressive JPEG. Encoders use about 10; each scan costs as much as decoding a JPEG.
      video_frames: frames of a video; 100,000 are half an hour at 60 frames per second.
      record_seconds: seconds for decoding the images and videos of one record, checked between images.
      record_images: images and videos of one record.
      record_text: bytes of text of one record.
      line_bytes: bytes of one line of a JSON lines or CSV file.
      file_bytes: bytes of one image, video or member of a tar.
      header_bytes: bytes of the line with the column names of a CSV file.
    """

    image_side: Pixels = 16_384
    image_pixels: Count = 50_000_000
    image_scans: Count = 100
    video_frames: Count = 100_000
    record_seconds: Positive = 60.0
    record_images: Count = 2_000
    record_text: NumBytes = 10_000_000
    line_bytes: NumBytes = 32_000_000
    file_bytes: NumBytes = 1_000_000_000
    header_bytes: NumBytes = 65_536


DEFAULT_LIMITS = Limits()
