"""Options of generation, as in `num_beams=5`: names and values are checked before any work."""

import dataclasses
from typing import Annotated, Any

from emu_jax.bounds import Between, Checked, Seed, Tokens
from emu_jax.diffusion.options import ImageOptions
from emu_jax.errors import UserError

EARLY_STOPPING = (False, True, "never")
MAX_IMAGES = 1024  # of one call

_MAX_LENGTH = 2**20  # tokens; more than any context
_MIN_TEMPERATURE = 1e-5  # smaller values overflow float32 scores


@dataclasses.dataclass(frozen=True)
class TextOptions(Checked):
    """Options of text generation.

    Lengths include the `<s>` that Hugging Face's `generate` prepends to its output ids when its input are embeddings,
    as in the release: `min_length` 8 means seven new tokens, and the length penalty divides by one more than the number
    of new tokens.

    Attributes:
      max_new_tokens: maximum number of new tokens; the context length is a further limit.
      num_beams: 1 for greedy search or sampling; more for beam search.
      length_penalty: a beam's log-likelihood is divided by length ** length_penalty; the release uses 0, and 1 for
        videos.
      early_stopping: False stops when no beam is likely to become better, True when there are `num_beams` finished
        beams, "never" when no beam can become better.
      min_length: minimum length before `</s>`.
      repetition_penalty: positive scores of generated tokens are divided by it, negative ones multiplied.
      no_repeat_ngram_size: no n-gram of this size occurs twice; 0 for no limit.
      temperature: 0 takes the most likely token; with a larger value tokens are sampled.
      top_k: sample from the k most likely tokens; 0 for all.
      top_p: sample from the smallest set of most likely tokens with this total probability.
      seed: of the sampling.
    """

    max_new_tokens: Tokens = 128
    num_beams: Annotated[int, Between(1, 64)] = 1
    length_penalty: Annotated[float, Between(-10.0, 10.0)] = 0.0
    early_stopping: bool | str = False
    min_length: Annotated[int, Between(0, 2**20)] = 0
    repetition_penalty: Annotated[float, Between(0.01, 100.0)] = 1.0
    no_repeat_ngram_size: Annotated[int, Between(0, 64)] = 0
    temperature: Annotated[float, Between(0.0, 100.0)] = 0.0
    top_k: Annotated[int, Between(0, 10**6)] = 0
    top_p: Annotated[float, Between(1e-6, 1.0)] = 1.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping not in EARLY_STOPPING:
            raise UserError(f'early_stopping must be False, True or "never", not {self.early_stopping!r}.')
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise UserError(f"temperature must be 0 or at least {_MIN_TEMPERATURE}, not {self.temperature}.")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise UserError("top_k and top_p are options of sampling; set a temperature above 0 with them.")
        if self.temperature > 0 and self.num_beams > 1:
            raise UserError("Beam search does not sample; set either a temperature or several beams.")


def text_options(**options: Any) -> TextOptions:
    """Return the options; raise UserError for an unknown name or a bad value."""
    return _from_names(TextOptions, options)


def image_options(**options: Any) -> ImageOptions:
    """Return the options; raise UserError for an unknown name or a bad value."""
    return _from_names(ImageOptions, options)


def _from_names(cls: Any, options: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            raise UserError(f"There is no option {name!r}; the options are {', '.join(known)}.")
    return cls(**options)
