"""One request inside the engine: what it asks for, what it reports, and how far it is."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from emu_jax.generation.mixed import OpenImage
from emu_jax.generation.options import ImageOptions
from emu_jax.generation.prompt import Prompt
from emu_jax.generation.sampling import TextOptions
from emu_jax.serving.slots import Chain


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """The images of an answer.

    Attributes:
      max_images: at most so many.
      when: an image begins; with FIRST the prompt ends in `[IMG]`.
      only_image: the answer is one image without text.
      copies: images from the same embeddings, each from other noise.
      options: of the visual decoder, height and width included; each further image takes the next seed.
    """

    max_images: int
    when: OpenImage
    only_image: bool
    copies: int
    options: ImageOptions


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked request. `digests` identify its images; `max_new_tokens` fits in the context."""

    model: str
    prompt: Prompt
    digests: tuple[bytes, ...]
    text: TextOptions
    images: ImagePlan | None = None


@dataclasses.dataclass(frozen=True)
class NewTokens:
    """Text tokens, the next of the answer."""

    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class NewImage:
    """Here in the answer comes image `index` (0, 1, ...), whose pixels follow in `ImageReady`."""

    index: int


@dataclasses.dataclass(frozen=True)
class ImageReady:
    index: int
    copy: int
    image: PIL.Image.Image


@dataclasses.dataclass(frozen=True)
class Finished:
    """The answer is complete: `reason` is "stop" or "length"; `reused_tokens` of the prompt were in a cache."""

    reason: str
    text_tokens: int
    images: int
    reused_tokens: int


@dataclasses.dataclass(frozen=True)
class Failed:
    """The request ends without an answer, with an HTTP status and a sentence."""

    status: int
    message: str


Event = NewTokens | NewImage | ImageReady | Finished | Failed

_numbers = itertools.count()


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way; everything below `deadline` belongs to the engine's thread.

    Attributes:
      deliver: called with each event, on the engine's thread.
      image_rows: for each prompt token its row in the slot's bank, -1 where it is no `<image>`.
      prefilled: prompt tokens in the cache. to_encode: images of the prompt that are not in the bank.
      run: `<image>` tokens of the image under way.
      open_images: images that are not delivered yet.
    """

    request: Request
    deliver: Callable[[Event], None]
    deadline: float
    chain: Chain
    image_rows: np.ndarray
    submitted: float = dataclasses.field(default_factory=time.monotonic)
    number: int = dataclasses.field(default_factory=lambda: next(_numbers))
    slot: int | None = None
    prefilled: int = 0
    reused: int = 0
    to_encode: list[int] = dataclasses.field(default_factory=list)
    text_tokens: int = 0
    last_token: int = -1
    images: int = 0
    run: int = 0
    open_images: int = 0
    reason: str = ""  # set when the text is complete
    first_event: float | None = None
    ended: bool = False

    @property
    def prompt_length(self) -> int:
        """Tokens to prefill: all except the last."""
        return len(self.request.prompt.tokens) - 1

    @property
    def beams(self) -> int:
        return self.request.text.num_beams


@dataclasses.dataclass(eq=False)
class ImageTask:
    """One image to sample; `called` U-Net calls of `count` are done."""

    job: Job
    index: int
    copy: int
    embeddings: np.ndarray
    options: ImageOptions
    table: Any
    count: int
    called: int = 0
    row: int | None = None
