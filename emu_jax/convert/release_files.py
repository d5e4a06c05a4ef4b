"""The config files of the released code: `Emu-14B.json`, `llama_config/config.json` and `t5-base/config.json`.

The code has them in `models/`, `models/llama_config/` and, as a model of the hub, `t5-base/`.
"""

from pathlib import Path
from typing import Any

from emu_jax.checkpoints.model_config import CONFIG
from emu_jax.convert.emu_config import (
    CHAT_TOKENS,
    LLAMA_CONFIG,
    SPECIAL_TOKENS,
    from_release_config,
    is_emu_config,
    is_release_form,
    read_config,
    to_llama_config,
    vision_values,
)
from emu_jax.errors import UserError
from emu_jax.io.files import read_json
from emu_jax.models.config import EmuConfig
from emu_jax.models.presets import emu_14b

EMU_JSON, T5_CONFIG = "Emu-14B.json", "t5-base"
# The tokenizer_config.json next to the LLaMA's tokenizer.model; the released class adds the special tokens.
LLAMA_TOKENIZER = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
    "legacy": True,
}
_LARGEST = 10**6  # bytes of a JSON file that may be a config


def find_emu_config(folder: Path) -> Path | None:
    """Return the config of the Emu in a folder: its config.json, or a file in the form of Emu-14B.json."""
    files = [folder / CONFIG, folder / EMU_JSON, folder / "models" / EMU_JSON]
    files += [path for path in sorted(folder.glob("*.json")) if path not in files and path.stat().st_size < _LARGEST]
    for file in files:
        if file.is_file():
            values = _json(file)
            if is_emu_config(values) and (file.name == CONFIG or is_release_form(values)):
                return file
    return None


def read_emu_config(path: Path, *, vocab_size: int | None = None) -> EmuConfig:
    """Return the EmuConfig of a config file in any known form.

    Args:
      path: ours, an exported config.json, or the release's Emu-14B.json; the sizes of the LLaMA and of T5 are then
        those of `llama_config/config.json` and `t5-base/config.json` near it, or else the published ones.
      vocab_size: rows of the token embedding, which Emu-14B.json does not state. None: four more than the LLaMA's.

    Raises:
      UserError: the file is missing, or a size is missing or invalid.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not is_release_form(values):
        return read_config(path)
    near = [path.parent, path.parent.parent]
    llama, t5 = (_config_near(near, names) for names in ((LLAMA_CONFIG, f"models/{LLAMA_CONFIG}"), (T5_CONFIG,)))
    adapter, multimodal = values.get("vladapter_cfg") or {}, values.get("multimodal_cfg") or {}
    published = emu_14b()
    joined = {
        "vision": values["vision_cfg"],
        "n_causal": adapter.get("n_causal", multimodal.get("n_causal", published.causal_former.num_image_tokens)),
        "cformer": {} if t5 is None else t5,
        "lm": to_llama_config(published.decoder, vocab_size=32000) if llama is None else llama,
    }
    if vocab_size is not None:
        joined["lm_vocab_with_special_tokens"] = vocab_size
    return from_release_config(joined, source=str(path))


def release_files(config: EmuConfig, *, pieces: int, embed_dim: int, t5_rows: int, dtype: str) -> dict[str, Any]:
    """Return the JSON values by file name, with which the released class opens a model of these sizes.

    Args:
      config: of the Emu.
      pieces: size of the tokenizer; the class adds the special tokens itself.
      embed_dim: rows of `visual.head.weight`.
      t5_rows: rows of `cformer.cformer.embed_tokens.weight`.
      dtype: of the exported tensors.
    """
    former = config.causal_former
    llama = to_llama_config(config.decoder, vocab_size=pieces, dtype=dtype)
    return {
        EMU_JSON: {
            "embed_dim": embed_dim,
            "vision_cfg": vision_values(config.vision),
            "multimodal_cfg": {
                "name": "llama-13B", "xattn": True, "n_causal": former.num_image_tokens, "freeze": False,
            },
            "vladapter_cfg": {"name": "cformer", "n_causal": former.num_image_tokens},
        },
        f"{LLAMA_CONFIG}/{CONFIG}": llama | {"pad_token_id": 0},
        f"{T5_CONFIG}/{CONFIG}": {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "d_model": former.width,
            "d_kv": former.head_dim,
            "d_ff": former.mlp_dim,
            "num_heads": former.num_heads,
            "num_layers": former.num_layers,
            "num_decoder_layers": former.num_layers,
            "relative_attention_num_buckets": former.relpos_buckets,
            "relative_attention_max_distance": former.relpos_max_distance,
            "dropout_rate": former.dropout,
            "layer_norm_epsilon": former.norm_eps,
            "feed_forward_proj": "relu",
            "initializer_factor": 1.0,
            "is_encoder_decoder": True,
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "n_positions": 512,
            "vocab_size": t5_rows,
        },
    }  # fmt: skip


def generation_config(*, pad_token_id: int) -> dict[str, Any]:
    """Return the generation_config.json of transformers."""
    return {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad_token_id}


def special_tokens(config: EmuConfig) -> int:
    """Return the number of special tokens of an Emu without a tokenizer: two more with the adapters of Emu-I."""
    return SPECIAL_TOKENS if config.lora is None else SPECIAL_TOKENS + CHAT_TOKENS


def _config_near(folders: list[Path], names: tuple[str, ...]) -> dict[str, Any] | None:
    for folder in folders:
        for name in names:
            path = folder / name / CONFIG
            if path.is_file():
                values = read_json(path)
                if not isinstance(values, dict):
                    raise UserError(f"{path} must contain a JSON object.")
                return values
    return None


def _json(path: Path) -> Any:
    """Return the value of a JSON file; None if it is not JSON."""
    if path.name == CONFIG:
        return read_json(path)
    try:
        return read_json(path)
    except UserError:
        return None
