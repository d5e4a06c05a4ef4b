"""Convert between EmuConfig and the config.json of the release or of a Hugging Face LLaMA."""

from pathlib import Path
from typing import Any

from emu_jax.checkpoints.model_config import emu_config, read_object
from emu_jax.config import from_config_dict, to_dict
from emu_jax.convert.transformers_export import from_transformers_config, is_transformers_config
from emu_jax.errors import UserError
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig

SPECIAL_TOKENS = 4  # [PAD] [IMG] [/IMG] <image>, added to LLaMA's vocabulary by Emu
CHAT_TOKENS = 2  # [USER] [ASSISTANT], added by Emu-I
LLAMA_CONFIG = "llama_config"  # folder of the LLaMA's config and tokenizer in the released code
_OUR_KEY = "emu_jax"  # our exports store the complete EmuConfig under this key
_INVALID_SIZES = (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError)
_T5_DEFAULTS = {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12}  # t5-base


def read_config(path: Path) -> EmuConfig:
    """Return the EmuConfig of a config.json in our layout, a run's, the release's, or that of a Transformers folder.

    A config in the release's layout does not mention adapters; `describe.with_adapters` adds them.

    Raises:
      UserError: the file is missing, is not JSON, or is not the config of an Emu.
    """
    values = read_object(path)
    if isinstance(values.get(_OUR_KEY), dict):
        return from_config_dict(EmuConfig, values[_OUR_KEY], path=f"{path.name}:{_OUR_KEY}")
    if is_transformers_config(values):
        return from_transformers_config(values, source=path.name)
    if "lm" in values and "cformer" in values:
        return from_release_config(values, source=str(path))
    return emu_config(values, source=path)


def is_emu_config(values: Any) -> bool:
    """Return True if these are the values of a config.json that `read_config` reads."""
    return isinstance(values, dict) and (
        "decoder" in values
        or "cformer" in values
        or isinstance(values.get("model"), dict)
        or is_release_form(values)
        or is_transformers_config(values)
    )


def is_release_form(values: Any) -> bool:
    """Return True if these are the values of the release's Emu-14B.json."""
    return isinstance(values, dict) and isinstance(values.get("vision_cfg"), dict) and "vladapter_cfg" in values


def from_release_config(values: dict[str, Any], *, source: str = "config.json") -> EmuConfig:
    """Return the EmuConfig for the release's keys (`vision`, `n_causal`, `cformer`, `lm`).

    Raises:
      UserError: a size is missing or invalid.
    """
    try:
        vision, t5 = values["vision"], _T5_DEFAULTS | values["cformer"]
        vision_config = VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["width"],
            num_layers=vision["layers"],
            num_heads=vision["width"] // vision["head_width"],
            mlp_dim=int(vision["width"] * vision["mlp_ratio"]),
        )
        causal_former = CausalFormerConfig(
            num_image_tokens=values["n_causal"],
            width=t5["d_model"],
            num_layers=t5.get("num_decoder_layers") or t5["num_layers"],
            num_heads=t5["num_heads"],
            head_dim=t5["d_kv"],
            mlp_dim=t5["d_ff"],
            relpos_buckets=t5.get("relative_attention_num_buckets", 32),
            relpos_max_distance=t5.get("relative_attention_max_distance", 128),
            norm_eps=t5.get("layer_norm_epsilon", 1e-6),
        )
        vocab_size = values.get("lm_vocab_with_special_tokens", values["lm"]["vocab_size"] + SPECIAL_TOKENS)
        decoder = from_llama_config(values["lm"], vocab_size=vocab_size, source=source)
    except _INVALID_SIZES as error:
        raise UserError(f"{source} is not a config of the Emu release: {error} is missing or invalid.") from None
    return EmuConfig(vision=vision_config, causal_former=causal_former, decoder=decoder)


def from_llama_config(values: dict[str, Any], *, vocab_size: int, source: str = "config.json") -> DecoderConfig:
    """Return the DecoderConfig for a Hugging Face LLaMA config, with `vocab_size` tokens.

    Raises:
      UserError: a size is missing, or the LLaMA has features that this decoder does not support (scaled rotary
        positions, biases, another activation).
    """
    unsupported = [
        f"{name}={values[name]!r}"
        for name, known in (
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("mlp_bias", False),
            ("partial_rotary_factor", 1.0),
        )
        if values.get(name, known) != known
    ]
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):  # before and since transformers 5
        given = values.get(name) or {}
        if not _is_plain_rope(given):
            unsupported.append(f"{name}={given!r}")
        else:
            rope |= given
    try:
        heads = values["num_attention_heads"]
        if values.get("head_dim") not in (None, values["hidden_size"] // heads):
            unsupported.append(f"head_dim={values['head_dim']}")
        if unsupported:
            raise UserError(f"{source} is a LLaMA that Emu's decoder does not support: {', '.join(unsupported)}.")
        return DecoderConfig(
            vocab_size=vocab_size,
            width=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads") or heads,
            mlp_dim=values["intermediate_size"],
            max_length=values.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10000.0))),
            norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        )
    except _INVALID_SIZES as error:
        raise UserError(f"{source} is not a valid LLaMA config: {error} is missing or invalid.") from None


def _is_plain_rope(values: Any) -> bool:
    """Return True for rotary positions that are not scaled: the type `default`, or linear with the factor 1."""
    if not isinstance(values, dict):
        return False
    kind = values.get("rope_type", values.get("type", "default"))
    return kind in ("default", None) or (kind == "linear" and values.get("factor") == 1)


def to_release_config(
    config: EmuConfig, *, pieces: int | None = None, embed_dim: int = 1024, dtype: str = "float32"
) -> dict[str, Any]:
    """Return the values of a config.json that `from_release_config` reads.

    Args:
      config: of the Emu.
      pieces: size of the tokenizer without the special tokens. None: that of a pretrained Emu.
      embed_dim: width of CLIP's projection, which Emu does not use.
      dtype: of the tensors.
    """
    former, decoder = config.causal_former, config.decoder
    pieces = decoder.vocab_size - SPECIAL_TOKENS if pieces is None else pieces
    special = {"torch_dtype": dtype, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pieces}
    return {
        "vision": vision_values(config.vision),
        "n_causal": former.num_image_tokens,
        "embed_dim": embed_dim,
        "cformer": {
            "d_model": former.width,
            "d_kv": former.head_dim,
            "num_heads": former.num_heads,
            "d_ff": former.mlp_dim,
            "num_layers": former.num_layers,
        },
        "lm": to_llama_config(decoder, vocab_size=pieces, dtype=dtype),
        "lm_vocab_with_special_tokens": decoder.vocab_size,
        "vocab_size": decoder.vocab_size,
        **special,
        _OUR_KEY: to_dict(config),
    }


def vision_values(vision: VisionConfig) -> dict[str, Any]:
    """Return the vision encoder's values in the release's config files."""
    return {
        "image_size": vision.image_size,
        "layers": vision.num_layers,
        "width": vision.width,
        "head_width": vision.width // vision.num_heads,
        "mlp_ratio": _ratio(vision.mlp_dim, vision.width),
        "patch_size": vision.patch_size,
        "eva_model_name": "eva-clip-g-14-x",
        "drop_path_rate": 0,
        "xattn": False,  # of the release; True computes the same and requires xformers
        "freeze": False,
    }


def to_llama_config(config: DecoderConfig, *, vocab_size: int, dtype: str = "float32") -> dict[str, Any]:
    """Return the values of the config.json for `transformers.LlamaForCausalLM.from_pretrained`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "initializer_range": config.embedding_std,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _ratio(mlp_dim: int, width: int) -> float:
    """Return a short ratio for which int(width * ratio) == mlp_dim: 6144 / 1408 -> 4.3637, as published."""
    for digits in range(4, 12):
        for ratio in (round(mlp_dim / width, digits), round(mlp_dim / width + 10**-digits, digits)):
            if int(width * ratio) == mlp_dim:
                return ratio
    return mlp_dim / width
