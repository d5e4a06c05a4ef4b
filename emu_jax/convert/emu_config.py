"""The release's config.json and ours: sizes of an Emu, in and out."""

import json
import os
from pathlib import Path
from typing import Any

from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig

CONFIG = "config.json"
SPECIAL_TOKENS = 4  # [PAD] [IMG] [/IMG] <image>, the rows that Emu adds to LLaMA's vocabulary
_OWN = "emu_jax"  # key under which our exports keep what the release's words cannot say
_NO_SIZES = (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError)
_T5_DEFAULTS = {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12}  # t5-base


def find_config(checkpoint: Path) -> Path | None:
    """config.json of a model directory or a run; one of a run's steps has it two levels up."""
    folders = (checkpoint, *Path(os.path.abspath(checkpoint)).parents[:2])
    return next((folder / CONFIG for folder in folders if (folder / CONFIG).is_file()), None)


def read_config(path: Path, *, lora: LoraConfig | None = None) -> EmuConfig:
    """The EmuConfig of a config.json: ours, a run's, or the release's layout (with `lora`, which that does not tell).

    Raises:
      UserError: the file is missing, is not JSON, or describes no Emu.
    """
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise UserError(f"There is no {path}; it tells the sizes of the model.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not describe an Emu.")
    if isinstance(values.get(_OWN), dict):
        return from_config_dict(EmuConfig, values[_OWN], path=f"{path.name}:{_OWN}")
    if "lm" in values and "cformer" in values:
        return from_release_config(values, lora=lora, source=str(path))
    if "model" in values and isinstance(values["model"], dict):  # the config of a training run
        values = values["model"]
    if "decoder" not in values:
        raise UserError(f"{path} describes no Emu: it is neither in our layout (vision, causal_former, decoder) "
                        "nor in the release's (vision, cformer, lm).")  # fmt: skip
    return from_config_dict(EmuConfig, values, path=path.name)


def from_release_config(values: dict[str, Any], *, lora: LoraConfig | None, source: str = "config.json") -> EmuConfig:
    """Sizes in the release's words (`vision`, `n_causal`, `cformer`, `lm`) as an EmuConfig."""
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
            num_layers=t5["num_layers"],
            num_heads=t5["num_heads"],
            head_dim=t5["d_kv"],
            mlp_dim=t5["d_ff"],
        )
        vocab_size = values.get("lm_vocab_with_special_tokens", values["lm"]["vocab_size"] + SPECIAL_TOKENS)
        decoder = from_llama_config(values["lm"], vocab_size=vocab_size, source=source)
    except _NO_SIZES as error:
        raise UserError(
            f"{source} is not a config of the Emu release: {error} is missing or of another kind."
        ) from None
    return EmuConfig(vision=vision_config, causal_former=causal_former, decoder=decoder, lora=lora)


def from_llama_config(values: dict[str, Any], *, vocab_size: int, source: str = "config.json") -> DecoderConfig:
    """Hugging Face's LLaMA config as a DecoderConfig with `vocab_size` rows.

    Raises:
      UserError: a LLaMA that this decoder does not compute (scaled rotary positions, biases, another activation).
    """
    other = [
        f"{name}={values[name]!r}"
        for name, known in (
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("mlp_bias", False),
            ("rope_scaling", None),
        )
        if values.get(name, known) != known
    ]
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        other.append(f"rope_type={rope['rope_type']!r}")
    try:
        heads = values["num_attention_heads"]
        if values.get("head_dim") not in (None, values["hidden_size"] // heads):
            other.append(f"head_dim={values['head_dim']}")
        if other:
            raise UserError(f"{source} describes a LLaMA that Emu's decoder does not compute: {', '.join(other)}.")
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
    except _NO_SIZES as error:
        raise UserError(f"{source} does not tell a LLaMA's sizes: {error} is missing or of another kind.") from None


def to_release_config(config: EmuConfig) -> dict[str, Any]:
    """The release's layout of `config`, as `from_release_config` reads it."""
    vision, former, decoder = config.vision, config.causal_former, config.decoder
    return {
        "vision": {
            "image_size": vision.image_size,
            "layers": vision.num_layers,
            "width": vision.width,
            "head_width": vision.width // vision.num_heads,
            "mlp_ratio": _ratio(vision.mlp_dim, vision.width),
            "patch_size": vision.patch_size,
            "eva_model_name": "eva-clip-g-14-x",
            "drop_path_rate": 0,
            "xattn": False,
            "freeze": False,
        },
        "n_causal": former.num_image_tokens,
        "embed_dim": 1024,
        "cformer": {
            "d_model": former.width,
            "d_kv": former.head_dim,
            "num_heads": former.num_heads,
            "d_ff": former.mlp_dim,
            "num_layers": former.num_layers,
        },
        "lm": to_llama_config(decoder, vocab_size=decoder.vocab_size - SPECIAL_TOKENS),
        "lm_vocab_with_special_tokens": decoder.vocab_size,
        _OWN: to_dict(config),
    }


def to_llama_config(config: DecoderConfig, *, vocab_size: int, dtype: str = "float32") -> dict[str, Any]:
    """What `transformers.LlamaForCausalLM.from_pretrained` reads beside the weights."""
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


def write_config(path: Path, config: EmuConfig) -> None:
    """Writes `config` in our own layout, as `read_config` reads it."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")


def _ratio(mlp_dim: int, width: int) -> float:
    """The shortest ratio whose product with `width` rounds down to `mlp_dim`: 6144 / 1408 -> 4.364."""
    for digits in range(1, 12):
        for ratio in (round(mlp_dim / width, digits), round(mlp_dim / width + 10**-digits, digits)):
            if int(width * ratio) == mlp_dim:
                return ratio
    return mlp_dim / width
