"""Write and read adapters in peft's folder: `adapter_config.json` and `adapter_model.safetensors`.

peft saves the names of the modules that it adapts, after `base_model.model.`. If an adapter changes only the LLaMA,
these are the names of `LlamaForCausalLM`, so the folder opens with the model of `export-torch --format huggingface`:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight

Otherwise they are the release's: `base_model.model.decoder.lm.model.layers.0. ...`, `base_model.model.visual. ...`.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from emu_jax.checkpoints.adapter import Adapter, adapted_config, difference, join_table, open_params
from emu_jax.checkpoints.vocabulary import TABLES
from emu_jax.convert.adapt import EMBEDDING
from emu_jax.convert.describe import with_adapters
from emu_jax.convert.emu_table import DECODER, emu_table, is_adapter
from emu_jax.convert.sources import lora_rank, release_name
from emu_jax.convert.table import Row, check_tensors, lazy_parameter, to_tensors
from emu_jax.errors import UserError
from emu_jax.io.files import atomic_folder, read_json, write_json
from emu_jax.io.safetensors_files import write_safetensors
from emu_jax.io.tensor_files import open_tensors
from emu_jax.io.tensors import Tensor
from emu_jax.models.config import EmuConfig

PEFT_CONFIG, _STEM = "adapter_config.json", "adapter_model"
_PREFIX = "base_model.model."
# Settings that change the computation in a way that LoraConfig does not have, with their neutral values.
_UNSUPPORTED = {
    "use_dora": False, "fan_in_fan_out": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {},
    "lora_bias": False,
}  # fmt: skip


def save_peft_adapter(directory: Path, adapter: Adapter, *, base: str | os.PathLike[str]) -> None:
    """Write an adapter in peft's layout, complete or not at all.

    Parameters that were trained without LoRA are in `modules_to_save`; the vocabulary tables are complete, as in peft.

    Args:
      directory: must not exist, or be empty.
      adapter: to write.
      base: the model that it changes.

    Raises:
      UserError: the adapter has no LoRA, or the directory exists or cannot be written.
    """
    if adapter.lora is None:
        raise UserError("peft's format is for LoRA, which this adapter does not have. Use --format emu.")
    stored, base_config = open_params(base)
    config = adapted_config(base_config, adapter)
    rows = [row for row in emu_table(config) if row.path in adapter.arrays]
    prefix = DECODER if all(map(_is_in_llama, rows)) else ""
    tensors = []
    for row in rows:
        array = adapter.arrays[row.path]
        if row.path in TABLES:
            size = row.stacked_shape[TABLES[row.path]]
            array = np.asarray(join_table(stored.read(row.path), jnp.asarray(array), row.path, adapter, rows=size))
        tensors += to_tensors(row, functools.partial(np.asarray, array), array.dtype)
    named = [dataclasses.replace(tensor, name=_peft_name(tensor.name, prefix)) for tensor in tensors]
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if prefix else None,
        "base_model_name_or_path": Path(base).name,
        "r": adapter.lora.rank,
        "lora_alpha": _short(adapter.lora.alpha),
        "lora_dropout": adapter.lora.dropout,
        "target_modules": sorted({_module(row) for row in rows if is_adapter(row)}),
        "modules_to_save": sorted({_module(row) for row in rows if _is_saved_with_module(row)}) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with atomic_folder(directory) as temporary:
        write_safetensors(temporary, named, stem=_STEM)
        write_json(temporary / PEFT_CONFIG, values, indent=2)


def read_peft_adapter(directory: Path, *, base: str | os.PathLike[str]) -> Adapter:
    """Read an adapter in peft's layout, with the names of `LlamaForCausalLM` or of the release.

    Args:
      directory: with `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`.
      base: the model that it changes. peft does not record which one that is; all shapes are checked.

    Raises:
      UserError: it is not such a folder, it has a setting that is not supported, or it does not fit `base`.
    """
    rank, alpha, dropout = _lora_settings(directory)
    tensors = _open(directory)
    if lora_rank(tensors) != rank:
        raise UserError(f"{directory}: {PEFT_CONFIG} has r = {rank}, but the matrices have rank {lora_rank(tensors)}.")
    config = _tuned_config(open_params(base)[1], tensors)
    assert config.lora is not None, "lora_rank is not None"
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, alpha=alpha, dropout=dropout))
    table = [row for row in emu_table(config) if is_adapter(row) or any(name in tensors for name in row.names)]
    check_tensors(table, tensors, source=str(directory))
    arrays = ((row.path, lazy_parameter(row, tensors).materialize()) for row in table)
    return difference(arrays, config=config, base=base, source=directory)


def _lora_settings(directory: Path) -> tuple[int, float, float]:
    """Return rank, alpha and dropout."""
    values = read_json(directory / PEFT_CONFIG)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise UserError(f"{directory / PEFT_CONFIG} is not the config of a LoRA adapter (peft_type LORA).")
    other = [
        f"{name}={values[name]!r}" for name, neutral in _UNSUPPORTED.items() if (values.get(name) or neutral) != neutral
    ]
    if other:
        raise UserError(f"{directory / PEFT_CONFIG} has settings that are not supported: {', '.join(other)}.")
    rank = values.get("r")
    alpha, dropout = (_number(values, name) for name in ("lora_alpha", "lora_dropout"))
    if type(rank) is not int or rank < 1 or not alpha >= 0 or not 0 <= dropout < 1:
        raise UserError(f"{directory / PEFT_CONFIG}: r, lora_alpha or lora_dropout is missing or invalid.")
    if values.get("use_rslora"):
        alpha *= math.sqrt(rank)  # rank-stabilized LoRA scales by alpha / sqrt(rank)
    return rank, alpha, dropout


def _number(values: Mapping[str, Any], name: str) -> float:
    """Return a setting; 0 as peft's default dropout, NaN (which fails every check) if it is not a number."""
    value = values.get(name, 0.0 if name == "lora_dropout" else math.nan)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else math.nan


def _open(directory: Path) -> dict[str, Tensor]:
    """Return the tensors by the names of the release."""
    file = next((f for s in (".safetensors", ".bin") if (f := directory / (_STEM + s)).is_file()), None)
    if file is None:
        raise UserError(f"{directory} has no {_STEM}.safetensors and no {_STEM}.bin.")
    tensors = {}
    for name, tensor in open_tensors(file).items():
        renamed = None
        if name.startswith(_PREFIX):
            plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            renamed = release_name(plain)
        if renamed is None:
            raise UserError(f"{name} in {file} is not a name that peft writes: {_PREFIX}MODULE.lora_A.weight.")
        for side in "AB":
            renamed = renamed.replace(f".lora_{side}.weight", f".lora_{side}.default.weight")
        tensors[renamed] = tensor
    return tensors


def _tuned_config(config: EmuConfig, tensors: Mapping[str, Tensor]) -> EmuConfig:
    """Return the config of the tuned model: the base's, with the adapters and the vocabulary of the tensors."""
    config = with_adapters(dataclasses.replace(config, lora=None), tensors)
    if EMBEDDING not in tensors:
        return config
    rows = tensors[EMBEDDING].shape[0]
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=rows))


def _is_in_llama(row: Row) -> bool:
    return row.path.startswith(("decoder/", "lm_head/"))


def _is_saved_with_module(row: Row) -> bool:
    """Return True for the weight or bias of a module, False for LoRA and for parameters such as the class token."""
    return not is_adapter(row) and row.torch.endswith((".weight", ".bias"))


def _peft_name(name: str, prefix: str) -> str:
    return _PREFIX + name.removeprefix(prefix).replace(".default.weight", ".weight")


def _module(row: Row) -> str:
    """Return the end of the names of a row's modules, after the number of the layer, by which peft finds them."""
    name = row.torch.partition(".lora_")[0] if is_adapter(row) else row.torch.rpartition(".")[0]
    return name.rpartition("{layer}.")[2].removeprefix(DECODER)


def _short(number: float) -> Any:
    return int(number) if number == int(number) else number
