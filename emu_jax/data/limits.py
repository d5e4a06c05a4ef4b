"""Bounds on untrusted files, checked before the work that they would cause."""

import dataclasses

from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
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

    image_side: int = 16_384
    image_pixels: int = 50_000_000
    image_scans: int = 100
    video_frames: int = 100_000
    record_seconds: float = 60.0
    record_images: int = 2_000
    record_text: int = 10_000_000
    line_bytes: int = 32_000_000
    file_bytes: int = 1_000_000_000
    header_bytes: int = 65_536

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(f"limits.{field.name} must be above 0, not {getattr(self, field.name)}.")


DEFAULT_LIMITS = Limits()
