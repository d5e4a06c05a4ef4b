"""Sizes and limits of a server. The sizes fix every compiled shape; the limits bound what one client may use."""

import dataclasses

from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EngineConfig:
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

    slots: int = 8
    context: int = 2048
    prefill_chunk: int = 128
    decode_steps: int = 4
    vision_batch: int = 4
    max_beams: int = 5
    sampler_rows: int = 2
    sampler_calls: int = 2
    max_sampler_steps: int = 100
    image_sizes: tuple[tuple[int, int], ...] = ()
    max_queue: int = 512
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("image_sizes", "timeout") and value < (field.name != "max_queue"):
                raise UserError(f"{field.name} must be at least 1, not {value}.")
        if self.timeout <= 0:
            raise UserError(f"timeout must be above 0 seconds, not {self.timeout}.")
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
class Limits:
    """Bounds on untrusted input.

    Attributes:
      max_body_bytes: of one request.
      max_image_bytes, max_image_pixels: of one encoded image, before it is decoded; of a video's file and frames too.
      max_media: images and videos in one request.
      url_hosts: hosts that images may be fetched from; empty: data URLs only.
      fetch_seconds: for one fetched image.
    """

    max_body_bytes: int = 64 * 2**20
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 40_000_000
    max_media: int = 64
    url_hosts: tuple[str, ...] = ()
    fetch_seconds: float = 10.0
