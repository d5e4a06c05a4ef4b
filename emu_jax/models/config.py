"""Model sizes as frozen dataclasses. `emu_jax.config.from_config_dict` builds them from a user's config."""

import dataclasses
from typing import Annotated

from emu_jax.bounds import (
    Between,
    Checked,
    Depth,
    Dtype,
    Epsilon,
    Fraction,
    Pixels,
    Positive,
    Size,
    Tokens,
    VocabSize,
)
from emu_jax.errors import UserError
from emu_jax.layers.linear import LoraConfig
from emu_jax.layers.saved import NAMES
from emu_jax.layers.stack import Remat

VOCAB_MULTIPLE = 128  # vocabulary tables are padded to a multiple of this, so that they can be sharded


def check_divides(name: str, value: int, *, by: str, divisor: int) -> None:
    """Raise UserError unless `divisor` divides `value`."""
    if value % divisor:
        raise UserError(f"{name} = {value} must be a multiple of {by} = {divisor}.")


def check_saved_activations(saved_activations: tuple[str, ...]) -> None:
    """Raise UserError for a name that is not in `layers/saved.py`."""
    for name in saved_activations:
        if name not in NAMES:
            raise UserError(f"saved_activations may be {', '.join(NAMES)}, not {name!r}.")


@dataclasses.dataclass(frozen=True)
class VisionConfig(Checked):
    """The vision encoder of EVA-CLIP."""

    image_size: Pixels
    patch_size: Pixels
    width: Size
    num_layers: Depth
    num_heads: Depth
    mlp_dim: Size
    norm_eps: Epsilon = 1e-6
    embedding_std: Fraction = 0.02  # of newly initialized positions and class token
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()  # names of layers/saved.py, used with Remat.FULL

    def __post_init__(self) -> None:
        super().__post_init__()
        check_saved_activations(self.saved_activations)
        check_divides("vision.image_size", self.image_size, by="vision.patch_size", divisor=self.patch_size)
        check_divides("vision.width", self.width, by="vision.num_heads", divisor=self.num_heads)

    @property
    def num_tokens(self) -> int:
        """Number of patches, plus one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class CausalFormerConfig(Checked):
    """T5 decoder blocks that turn image features into `num_image_tokens` visual embeddings."""

    num_image_tokens: Tokens
    width: Size
    num_layers: Depth
    num_heads: Depth
    head_dim: Size
    mlp_dim: Size
    relpos_buckets: Annotated[int, Between(2, 2**16)] = 32
    relpos_max_distance: Annotated[int, Between(2, 2**20)] = 128
    dropout: Fraction = 0.1
    embedding_std: Fraction = 0.02  # of newly initialized queries
    norm_eps: Epsilon = 1e-6
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()  # names of layers/saved.py, used with Remat.FULL

    def __post_init__(self) -> None:
        super().__post_init__()
        check_saved_activations(self.saved_activations)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Checked):
    """The LLaMA decoder. `vocab_size` counts the special tokens, but not the padding of the vocabulary tables."""

    vocab_size: VocabSize
    width: Size
    num_layers: Depth
    num_heads: Depth
    num_kv_heads: Depth
    mlp_dim: Size
    max_length: Tokens = 2048
    rope_theta: Positive = 10000.0
    norm_eps: Epsilon = 1e-6
    embedding_std: Fraction = 0.02  # of a newly initialized token embedding
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()  # names of layers/saved.py, used with Remat.FULL

    def __post_init__(self) -> None:
        super().__post_init__()
        check_saved_activations(self.saved_activations)
        check_divides("decoder.width", self.width, by="2 decoder.num_heads", divisor=2 * self.num_heads)
        check_divides("decoder.num_heads", self.num_heads, by="decoder.num_kv_heads", divisor=self.num_kv_heads)

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclasses.dataclass(frozen=True)
class EmuConfig(Checked):
    """The complete model. It computes in `dtype` and stores its parameters in `param_dtype`."""

    vision: VisionConfig
    causal_former: CausalFormerConfig
    decoder: DecoderConfig
    lora: LoraConfig | None = None
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
