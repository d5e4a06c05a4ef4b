"""Select the weight files in the folders that training programs and model hubs write."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from emu_jax.errors import UserError
from emu_jax.io.files import read_json, read_text

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_VARIANTS = ("", ".fp32", ".bf16", ".fp16", ".non_ema")  # of the file names of diffusers and transformers
_VARIANT = re.compile(r"\.(fp32|bf16|fp16|non_ema)(?=[.-])")
_INDEX = re.compile(r".*\.(safetensors|bin)\.index\.json")
# State of a training program that is not the model: optimizers, schedulers, random states, arguments, averages, ...
_NOT_A_MODEL = re.compile(
    r"(?i).*(optim|scheduler|rng_state|random_state|training_args|trainer_state).*|(args|scaler|sampler|dl_state).*"
    r"|(.*[_-])?ema([_.-].*)?|(non_lora_trainables|mm_projector|adapter_model|custom_checkpoint).*"
    r"|(pytorch_)?model_\d+\..*"
)
# Names that programs give to the model itself, best first.
_STEM = "(model|pytorch_model|diffusion_pytorch_model)"
_SHARD = _STEM + r"-\d+-of-\d+"
_STANDARD = tuple(
    map(
        re.compile,
        (
            *(_STEM + r"\.safetensors" + end for end in (r"\.index\.json", "")), _SHARD + r"\.safetensors",
            *(_STEM + r"\.bin" + end for end in (r"\.index\.json", "")), _SHARD + r"\.bin",
            r"pytorch_model_fsdp\.bin", _STEM + r"\.pth?", r"mp_rank_00_model_states\.pt", r"last\.ckpt",
        ),
    )
)  # fmt: skip
_ZERO_3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files of the model in a folder, and the names of other weight files there, which are ignored.

    The names that transformers, diffusers, accelerate, DeepSpeed and Lightning give to a model are preferred over other
    names, safetensors over `.bin`, an index over single files, and the plain name over a variant such as `.fp16`.

    Raises:
      UserError: there is no model, more than one, or an index lists a file that is not there.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    candidates = [name for name in names if name.endswith(SUFFIXES) or _is_index(name)]
    chosen = _standard(candidates) or _others(folder, candidates)
    if not chosen:
        nested = _nested(folder)
        if nested is not None:
            return weight_files(nested)
        raise UserError(_no_model(folder, names))
    files = _indexed_files(folder / chosen[0]) if _is_index(chosen[0]) else [folder / name for name in chosen]
    used = {file.name for file in files}
    return files, [name for name in candidates if name not in used and not _is_index(name)]


def _standard(names: Sequence[str]) -> list[str]:
    """Return the names of the preferred form of the model, empty if there is none."""
    for form in _STANDARD:
        for variant in _VARIANTS:
            found = [name for name in names if _variant(name) == variant and form.fullmatch(_plain(name))]
            if found:
                return _complete_shards(found) if "-of-" in found[0] else found[:1]
    return []


def _plain(name: str) -> str:
    """Return a file name without its variant: model.safetensors.index.fp16.json -> model.safetensors.index.json."""
    return _VARIANT.sub("", name, count=1)


def _variant(name: str) -> str:
    match = _VARIANT.search(name)
    return match[0] if match else ""


def _complete_shards(names: list[str]) -> list[str]:
    """Return the shards of a model without an index, if all of them are there."""
    total = {int(match[1]) for name in names if (match := re.search(r"-of-(\d+)", name))}
    if total != {len(names)}:
        raise UserError(
            f"There are {len(names)} shards ({names[0]}, ...) of {max(total)}. Copy or download the others."
        )
    return names


def _others(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the files with other names that may be a model. Several are the parts of one."""
    indices = [name for name in names if _is_index(name)]
    if len(indices) > 1:
        raise UserError(f"{folder} has {len(indices)} indices ({indices[0]}, ...). Name one checkpoint.")
    if indices:
        return indices
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        found = [name for name in names if name.endswith(suffixes) and not _NOT_A_MODEL.fullmatch(name)]
        checkpoints = [name for name in found if name.endswith(".ckpt")]
        if len(checkpoints) > 1:
            raise UserError(f"{folder} has {len(checkpoints)} checkpoints ({', '.join(checkpoints[:3])}). Name one.")
        if any(map(_ZERO_3.fullmatch, found)):
            raise UserError(f"{folder} has the shards of ZeRO stage 3. Join them with its zero_to_fp32.py first.")
        if found:
            return found
    return []


def _nested(folder: Path) -> Path | None:
    """Return the folder of the model states that DeepSpeed or Lightning wrote: `latest`, or `checkpoint/`."""
    latest = folder / "latest"
    names = ([read_text(latest).strip()] if latest.is_file() else []) + ["checkpoint"]
    return next((folder / n for n in names if n and Path(n).name == n and any((folder / n).glob("*.pt"))), None)


def _no_model(folder: Path, names: Sequence[str]) -> str:
    """Return the error on a folder without a model, with the command that makes one where there is such a command."""
    distributed = [folder] if any(name.endswith(".distcp") for name in names) else []
    distributed += [path.parent for path in sorted(folder.glob("*/*.distcp"))[:1]]
    if distributed:
        convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        return f"{distributed[0]} is a sharded checkpoint of PyTorch. Convert it: {convert} {distributed[0]} model.pt"
    runs = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name.rpartition("-")[2].isdigit()]
    if runs:
        newest = max(runs, key=lambda path: int(path.name.rpartition("-")[2]))
        return f"{folder} has no model, but {len(runs)} checkpoints of a run. Name one, such as {newest}."
    only = [name for name in names if name.endswith(SUFFIXES)]
    if only:
        return f"{folder} has no model, only {', '.join(only[:4])}. Name the folder or file with the model's weights."
    return f"{folder} has no checkpoint: there is no .safetensors, .bin, .pt, .pth or .ckpt file in it."


def _is_index(name: str) -> bool:
    return _INDEX.fullmatch(_plain(name)) is not None


def _indexed_files(index: Path) -> list[Path]:
    values = read_json(index)
    try:
        names = sorted(set(map(os.fspath, values["weight_map"].values())))
    except (KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is not an index of checkpoint shards (it has no weight_map).") from None
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise UserError(f"{index} lists {len(absent)} files that are not in its folder: {', '.join(absent[:3])}.")
    return [index.parent / name for name in names]
