"""Files of a Transformers folder next to its tensors: configs, the code that `trust_remote_code` runs, model card."""

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu_jax.checkpoints.model_config import CONFIG
from emu_jax.config import from_config_dict, to_dict
from emu_jax.convert.huggingface_tokenizer import tokenizer_files
from emu_jax.convert.model_card import model_card
from emu_jax.data.tokenizer import fitting_tokenizer
from emu_jax.errors import UserError
from emu_jax.io.files import write_json, write_text
from emu_jax.models.config import EmuConfig

MODEL_TYPE = "emu"
_CODE = ("configuration_emu.py", "generation_emu.py", "modeling_emu.py", "processing_emu.py", "vision_emu.py")
_PARTS = {"vision": "vision", "causal_former": "causal_former", "decoder": "language_model"}  # our name: theirs
_TRAINING = ("remat", "saved_activations")  # fields of the parts that are not sizes
_AUTO_MAP = {
    "AutoConfig": "configuration_emu.EmuConfig",
    "AutoModel": "modeling_emu.EmuModel",
    "AutoModelForCausalLM": "modeling_emu.EmuModel",
    "AutoProcessor": "processing_emu.EmuProcessor",
}


def write_transformers_files(
    folder: Path, config: EmuConfig, *, tokenizer: Path | None, dtype: str, card: Mapping[str, Any]
) -> None:
    """Write all files of a Transformers folder except the tensors.

    Args:
      folder: exists already.
      config: of the Emu, without adapters.
      tokenizer: SentencePiece model. The processor requires one.
      dtype: of the tensors.
      card: the metadata of the model card (YAML keys of the Hugging Face Hub), and `training` and `scores`.

    Raises:
      UserError: there is no tokenizer, or it does not fit the vocabulary.
    """
    if tokenizer is None:
        raise UserError("The format transformers requires a tokenizer. Import the model with --tokenizer.")
    sizes = {"vocab_size": config.decoder.vocab_size, "max_length": config.decoder.max_length}
    for name, values in tokenizer_files(tokenizer, **sizes).items():
        write_json(folder / name, values, indent=2)
    write_json(folder / CONFIG, _config(config, tokenizer, dtype), indent=2)
    processor = {
        "processor_class": "EmuProcessor",
        "auto_map": {"AutoProcessor": _AUTO_MAP["AutoProcessor"]},
        "image_size": config.vision.image_size,
        "num_image_tokens": config.causal_former.num_image_tokens,
    }
    write_json(folder / "processor_config.json", processor, indent=2)
    for name in _CODE:
        code = importlib.resources.files("emu_jax.convert") / "transformers_format" / name
        write_text(folder / name, code.read_text(encoding="utf-8"))
    write_text(folder / "README.md", model_card(config, dtype=dtype, **card))


def is_transformers_config(values: Mapping[str, Any]) -> bool:
    """Return True for the values of a config.json of this format."""
    return values.get("model_type") == MODEL_TYPE and "language_model" in values


def from_transformers_config(values: Mapping[str, Any], *, source: str) -> EmuConfig:
    """Return the EmuConfig of a config.json of this format.

    Raises:
      UserError: a size is missing or invalid.
    """
    return from_config_dict(EmuConfig, {ours: values.get(theirs) for ours, theirs in _PARTS.items()}, path=source)


def _config(config: EmuConfig, tokenizer: Path, dtype: str) -> dict[str, Any]:
    ids = fitting_tokenizer(tokenizer, vocab_size=config.decoder.vocab_size)
    values = to_dict(config)
    sizes = {
        theirs: {name: value for name, value in values[ours].items() if name not in _TRAINING}
        for ours, theirs in _PARTS.items()
    }
    return {
        "architectures": ["EmuModel"],
        "model_type": MODEL_TYPE,
        "auto_map": _AUTO_MAP,
        **sizes,
        "boi_token_id": ids.boi_id,
        "eoi_token_id": ids.eoi_id,
        "image_token_id": ids.image_token_id,
        "bos_token_id": ids.bos_id,
        "eos_token_id": ids.eos_id,
        "pad_token_id": ids.pad_id,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
