"""The visual decoder on the device: sampling programs for one image size, compiled ahead of time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.generation.options import ImageOptions
from emu_jax.serving.config import EngineConfig
from emu_jax.serving.image_lane import (
    ImageStart,
    begin_image,
    decode_image,
    empty_image_state,
    padded_table,
    sample,
)
from emu_jax.serving.state import FLOAT, INT, UINT

PROGRAMS = ("begin", "sample", "decode")


class ImageDevice:
    """Rows of images of one size. On several processes it runs on the first device of process 0 only."""

    def __init__(
        self, decoder: VisualDecoder, engine: EngineConfig, *, height: int, width: int, num_image_tokens: int
    ) -> None:
        self.decoder, self.engine = decoder, engine
        self.calls = engine.max_sampler_steps + 1  # PNDM calls the U-Net once more than it has steps
        self._empty = functools.partial(
            empty_image_state,
            decoder,
            rows=engine.sampler_rows,
            height=height,
            width=width,
            calls=self.calls,
            num_image_tokens=num_image_tokens,
        )
        self._compiled: dict[str, Any] = {}
        self.reset()

    def compile(self, name: str) -> None:
        """Compile one of `PROGRAMS`, and run it once on nothing."""
        unet, vae = self.decoder.unet, self.decoder.vae
        conditioning = np.zeros(self._state.conditioning.shape[1:], np.float32)
        table, _ = padded_table(self.decoder, ImageOptions(steps=1), self.calls)
        start = self._start(0, ImageOptions(), 0, conditioning, conditioning, table, 0)
        functions: dict[str, tuple[Any, str, tuple[Any, ...]]] = {
            "begin": (begin_image, "unet", (start,)),
            "sample": (
                functools.partial(sample, unet=unet, calls=self.engine.sampler_calls),
                "unet",
                (np.zeros(self.engine.sampler_rows, bool),),
            ),
            "decode": (functools.partial(decode_image, vae=vae), "vae", (np.int32(0),)),
        }
        function, part, examples = functions[name]
        jitted = jax.jit(function, donate_argnums=() if name == "decode" else 1)
        params = self.decoder.params[part]
        self._compiled[name] = functools.partial(jitted.lower(params, self._state, *examples).compile(), params)
        self._run(name, *examples)

    def begin(
        self, row: int, options: ImageOptions, copy: int, conditioning: np.ndarray, unconditional: np.ndarray,
        table: Any, count: int,
    ) -> None:  # fmt: skip
        """Start sampling an image in a row; `table` and `count` are from `table`."""
        self._run("begin", self._start(row, options, copy, conditioning, unconditional, table, count))

    def sample(self, active: np.ndarray) -> None:
        """Run `sampler_calls` U-Net calls of the `active` rows."""
        self._run("sample", active)

    def decode(self, row: int) -> np.ndarray:
        """Return the pixels of a row that is complete, `[H, W, 3]` about in [-1, 1]."""
        return np.asarray(self._run("decode", np.int32(row)))

    def table(self, options: ImageOptions) -> tuple[Any, int]:
        """Return a request's sampler table and its number of U-Net calls. Raises UserError for too many steps."""
        return padded_table(self.decoder, options, self.calls)

    def reset(self) -> None:
        """Begin with all rows free."""
        self._state = jax.tree.map(jnp.array, self._empty())

    def _run(self, name: str, *arguments: Any) -> Any:
        result = self._compiled[name](self._state, *arguments)
        jax.block_until_ready(result)
        if name == "decode":
            return result
        self._state = result
        return None

    @staticmethod
    def _start(
        row: int, options: ImageOptions, copy: int, conditioning: Any, unconditional: Any, table: Any,
        count: int,
    ) -> ImageStart:  # fmt: skip
        return ImageStart(
            row=INT(row),
            seed=UINT(options.seed),
            copy=INT(copy),
            conditioning=conditioning,
            unconditional=unconditional,
            guidance_scale=FLOAT(options.guidance_scale),
            table=table,
            count=INT(count),
        )
