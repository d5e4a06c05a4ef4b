"""Sizes and limits of a server. The sizes fix every compiled shape; the limits bound what one client may use."""

import dataclasses
from typing import Annotated

from emu_jax.bounds import Between, Checked, Count, CountOrZero, NumBytes, Pixels, Seconds, Tokens
from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EngineConfig(Checked):
    """Sizes of the compiled programs.

    Attributes:
      slots: answers that are decoded together; each has its own KV cache.
      context: positions of a slot, prompt and answer together; a multiple of `prefill_chunk`.
      prefill_chunk: prompt tokens in one prefill step; a prompt's last chunk may be a quarter of that.
      decode_steps: tokens per answer in one call of the decode program.
      vision_batch: images in one call of the vision encoder.
      max_beams: beams of the one beam search that runs at a time; 1 turns beam search off.
      sampler_rows: images that the visual decoder samples together.
      sampler_calls: U-Net calls in one unit of work.
      max_sampler_steps: the largest `num_inference_steps` of a request.
      image_sizes: `(height, width)` in pixels that can be requested, the default first; empty: no images.
      max_queue: requests that wait for a slot; one more is refused.
      timeout: seconds that a request may take, waiting included.
    """

    slots: Annotated[int, Between(1, 4096)] = 8
    context: Tokens = 2048
    prefill_chunk: Tokens = 128
    decode_steps: Annotated[int, Between(1, 4096)] = 4
    vision_batch: Annotated[int, Between(1, 4096)] = 4
    max_beams: Annotated[int, Between(1, 64)] = 5
    sampler_rows: Annotated[int, Between(1, 4096)] = 2
    sampler_calls: Annotated[int, Between(1, 4096)] = 2
    max_sampler_steps: Annotated[int, Between(1, 1000)] = 100
    image_sizes: tuple[tuple[Pixels, Pixels], ...] = ()
    max_queue: CountOrZero = 512
    timeout: Seconds = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefill_chunk % 4 or self.context % self.prefill_chunk:
            raise UserError(
                f"prefill_chunk must be a multiple of 4 and divide the context, which {self.prefill_chunk} and "
                f"{self.context} do not; choose a power of two."
            )

    @property
    def chunk_sizes(self) -> tuple[int, int]:
        """Tokens in a prefill step, ascending."""
        return self.prefill_chunk // 4, self.prefill_chunk


@dataclasses.dataclass(frozen=True)
class Limits(Checked):
    """Bounds on untrusted input.

    Attributes:
      max_body_bytes: of one request.
      max_image_bytes, max_image_pixels: of one encoded image, before it is decoded; of a video's file and frames too.
      max_media: images and videos in one request.
      url_hosts: hosts that images may be fetched from; empty: data URLs only.
      fetch_seconds: for one fetched image.
    """

    max_body_bytes: NumBytes = 64 * 2**20
    max_image_bytes: NumBytes = 20 * 2**20
    max_image_pixels: Count = 40_000_000
    max_media: Count = 64
    url_hosts: tuple[str, ...] = ()
    fetch_seconds: Seconds = 10.0
