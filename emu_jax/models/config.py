"""Model sizes as frozen dataclasses. `emu_jax.config.from_config_dict` builds them from a user's config."""

import dataclasses

from emu_jax.errors import UserError
from emu_jax.layers.linear import LoraConfig
from emu_jax.layers.saved import NAMES
from emu_jax.layers.stack import Remat

VOCAB_MULTIPLE = 128  # vocabulary tables are padded to a multiple of this, so that they can be sharded


def check_saved_activations(saved_activations: tuple[str, ...]) -> None:
    """Raise UserError for a name that is not in `layers/saved.py`."""
    for name in saved_activations:
        if name not in NAMES:
            raise UserError(f"saved_activations may be {', '.join(NAMES)}, not {name!r}.")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision encoder of EVA-CLIP."""

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    norm_eps: float = 1e-6
    embedding_std: float = 0.02  # of newly initialized positions and class token
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()  # names of layers/saved.py, used with Remat.FULL

    def __post_init__(self) -> None:
        check_saved_activations(self.saved_activations)

    @property
    def num_tokens(self) -> int:
        """Number of patches, plus one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class CausalFormerConfig:
    """T5 decoder blocks that turn image features into `num_image_tokens` visual embeddings."""

    num_image_tokens: int
    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    dropout: float = 0.1
    embedding_std: float = 0.02  # of newly initialized queries
    norm_eps: float = 1e-6
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()  # names of layers/saved.py, used with Remat.FULL

    def __post_init__(self) -> None:
        check_saved_activations(self.saved_activations)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The LLaMA decoder. `vocab_size` counts the special tokens, but not the padding of the vocabulary tables."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    max_length: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    embedding_std: float = 0.02  # of a newly initialized token embedding
    remat: Remat = Remat.NONE
    saved_activations: tuple[str, ...] = ()  # names of layers/saved.py, used with Remat.FULL

    def __post_init__(self) -> None:
        check_saved_activations(self.saved_activations)

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclasses.dataclass(frozen=True)
class EmuConfig:
    """The complete model. It computes in `dtype` and stores its parameters in `param_dtype`."""

    vision: VisionConfig
    causal_former: CausalFormerConfig
    decoder: DecoderConfig
    lora: LoraConfig | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
