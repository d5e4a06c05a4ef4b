"""Read and write model folders in diffusers' layout: `unet/`, `vae/`, `scheduler/`, each a config and its weights.

The folders of Stable Diffusion and of Emu also have `safety_checker/` and `feature_extractor/`.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.errors import UserError
from emu_jax.io.checkpoint_folder import SUFFIXES, weight_files
from emu_jax.io.files import read_json, write_json
from emu_jax.io.safetensors_files import write_safetensors
from emu_jax.io.tensor_files import open_tensors
from emu_jax.io.tensors import Progress, Tensor, no_progress
from emu_jax.io.wrapper_names import without_wrappers

UNET, VAE, SCHEDULER = "unet", "vae", "scheduler"
SAFETY, EXTRACTOR = "safety_checker", "feature_extractor"
REQUIRED, SCREENING = (UNET, VAE, SCHEDULER), (SAFETY, EXTRACTOR)
CONFIG_NAME = {
    UNET: "config.json",
    VAE: "config.json",
    SCHEDULER: "scheduler_config.json",
    SAFETY: "config.json",
    EXTRACTOR: "preprocessor_config.json",
}
WEIGHTS = "diffusion_pytorch_model"
_FILES = dict.fromkeys((UNET, VAE), (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"))
_FILES[SAFETY] = ("model.safetensors", "pytorch_model.bin")
# Names that follow the `model.` of a wrapper.
_OWN = re.compile(r"(conv_in|down_blocks|mid_block|up_blocks|time_embedding|encoder|decoder|quant_conv|vision_model)\.")

# Names of the VAE's attention in diffusers before 0.17. The published file of SD v1.5 still has them.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def is_diffusers_folder(directory: Path) -> bool:
    """Return True if `directory` has the configs of U-Net, VAE and scheduler."""
    return all((directory / part / CONFIG_NAME[part]).is_file() for part in REQUIRED)


def has_decoder_part(directory: Path) -> bool:
    """Return True if `directory` has a U-Net or a VAE, so that it should be a complete diffusers folder."""
    return any((directory / part / CONFIG_NAME[part]).is_file() for part in (UNET, VAE))


def has_safety_checker(directory: Path) -> bool:
    """Return True if `directory` has the weights of a safety checker."""
    return bool(_weights(directory, SAFETY))


def read_part_config(directory: Path, part: str) -> dict[str, Any]:
    """Return the config of one part.

    Raises:
      UserError: it is missing, or is not a JSON object.
    """
    path = directory / part / CONFIG_NAME[part]
    if not path.is_file():
        raise UserError(f"{directory} is not a diffusers folder: {part}/{path.name} is missing.")
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} must contain a JSON object.")
    return config


def part_bytes(directory: Path, part: str) -> int:
    """Return the size of the files with a part's weights; 0 if there are none."""
    return sum(path.stat().st_size for path in _weights(directory, part))


def open_part(directory: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part by their current names.

    The files may be sharded, with or without an index, and their names may have the prefixes of wrappers.
    safetensors are preferred over `.bin`, and the plain file name over a variant's.

    Raises:
      UserError: there are no weights, they cannot be read, or PyTorch is not installed for a `.bin`.
    """
    if not _weights(directory, part):
        raise UserError(f"{directory / part} has no weights. It must contain {' or '.join(_FILES[part])}.")
    tensors, _ = without_wrappers(open_tensors(directory / part), _OWN)
    return {_current_name(name): tensor for name, tensor in tensors.items()}


def write_part(
    directory: Path,
    part: str,
    config: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
    *,
    stem: str = WEIGHTS,
    progress: Progress = no_progress,
) -> None:
    """Write the config and the weights of one part to STEM.safetensors; `progress` is called after each tensor."""
    folder = directory / part
    folder.mkdir()
    write_json(folder / CONFIG_NAME[part], config, indent=2)
    if tensors:
        size = sum(tensor.nbytes for tensor in tensors)
        write_safetensors(folder, tensors, stem=stem, shard_bytes=size, progress=progress)


def copy_screening(source: Path, target: Path) -> tuple[str, ...]:
    """Copy the safety checker and its feature extractor to `target`. Return the parts that `source` has."""
    present = tuple(part for part in SCREENING if (source / part / CONFIG_NAME[part]).is_file())
    for part in present:
        _copy_part(source, target, part)
    return present


def absent_screening(directory: Path) -> tuple[str, ...]:
    """Return the names of the safety checker and its feature extractor where a diffusers folder lacks them."""
    return tuple(part for part in SCREENING if not (directory / part / CONFIG_NAME[part]).is_file())


@dataclasses.dataclass(frozen=True)
class DecoderFiles:
    """Form of an exported visual decoder.

    Attributes:
      dtype: of the U-Net and the autoencoder. None: as saved.
      variant: part of the names of their files, for `from_pretrained(..., variant="fp16")`. None: plain names.
      legacy_attention: the autoencoder's attention has the names of diffusers before 0.17.
    """

    dtype: np.dtype | None = None
    variant: str | None = None
    legacy_attention: bool = False


def copy_decoder(source: Path, target: Path, files: DecoderFiles | None = None) -> None:
    """Copy all parts of a diffusers folder to `target`, and write its model_index.json."""
    for part in REQUIRED:
        if files in (None, DecoderFiles()) or part == SCHEDULER:
            _copy_part(source, target, part)
        else:
            _convert_part(source, target, part, files)
    screening = copy_screening(source, target)
    write_json(target / "model_index.json", _model_index(source, screening), indent=2)


def _convert_part(source: Path, target: Path, part: str, files: DecoderFiles) -> None:
    tensors = list(open_part(source, part).values())
    if files.dtype is not None:
        tensors = [tensor.astype(files.dtype) for tensor in tensors]
    if files.legacy_attention and part == VAE:
        tensors = [dataclasses.replace(tensor, name=_legacy_name(tensor.name)) for tensor in tensors]
    stem = WEIGHTS if files.variant is None else f"{WEIGHTS}.{files.variant}"
    write_part(target, part, read_part_config(source, part), tensors, stem=stem)


def _model_index(source: Path, screening: Sequence[str]) -> dict[str, Any]:
    """Return the values with which diffusers opens the folder, with `text_encoder=None, tokenizer=None`."""
    scheduler = read_part_config(source, SCHEDULER).get("_class_name", "PNDMScheduler")
    absent = [None, None]
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.17.1",
        "requires_safety_checker": SAFETY in screening,
        EXTRACTOR: ["transformers", "CLIPImageProcessor"] if EXTRACTOR in screening else absent,
        SAFETY: ["stable_diffusion", "StableDiffusionSafetyChecker"] if SAFETY in screening else absent,
        SCHEDULER: ["diffusers", scheduler],
        "text_encoder": absent,
        "tokenizer": absent,
        UNET: ["diffusers", "UNet2DConditionModel"],
        VAE: ["diffusers", "AutoencoderKL"],
    }


def _copy_part(source: Path, target: Path, part: str) -> None:
    """Copy the config, and the weights in one format under their plain name."""
    (target / part).mkdir()
    shutil.copyfile(source / part / CONFIG_NAME[part], target / part / CONFIG_NAME[part])
    weights = _weights(source, part)
    for file in weights:
        plain = next(name for name in _FILES[part] if name.endswith(file.suffix))
        shutil.copyfile(file, target / part / (plain if len(weights) == 1 else file.name))


def _weights(directory: Path, part: str) -> list[Path]:
    """Return the files with a part's weights; none if there are none."""
    folder = directory / part
    if part not in _FILES or not folder.is_dir() or not any(path.suffix in SUFFIXES for path in folder.iterdir()):
        return []
    return weight_files(folder)[0]


def _current_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _legacy_name(name: str) -> str:
    if ".attentions." in name:
        for old, new in _OLD_NAMES.items():
            name = name.replace(new, old)
    return name
