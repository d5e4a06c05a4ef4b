"""A model folder as diffusers lays it out: `unet/`, `vae/` and `scheduler/`, each a config and perhaps its weights.

Stable Diffusion's own, and Emu's, have `safety_checker/` and `feature_extractor/` beside them.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.errors import UserError

UNET, VAE, SCHEDULER = "unet", "vae", "scheduler"
SAFETY, EXTRACTOR = "safety_checker", "feature_extractor"
NEEDED, SCREENING = (UNET, VAE, SCHEDULER), (SAFETY, EXTRACTOR)
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
_VARIANTS = ("", ".fp16", ".bf16")  # `NAME.fp16.safetensors`: what diffusers fetches and saves with variant="fp16"

# How diffusers called the autoencoder's attention before 0.17; SD v1.5's own file still does.
_LEGACY = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by torch name, each read when it is asked for."""

    def __init__(self, names: Mapping[str, str], read: Callable[[str], np.ndarray]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_one(directory: Path) -> bool:
    """Whether `directory` has the configs of all three parts that make a decoder."""
    return all((directory / part / CONFIG_NAME[part]).is_file() for part in NEEDED)


def screens(directory: Path) -> bool:
    """Whether a safety checker's weights lie in `directory`."""
    return _weights(directory, SAFETY) is not None


def read_config(directory: Path, part: str) -> dict[str, Any]:
    """The config of one part.

    Raises:
      UserError: it is not there, or is no JSON object.
    """
    path = directory / part / CONFIG_NAME[part]
    if not path.is_file():
        raise UserError(f"{directory} is not a diffusers folder: {part}/{path.name} is missing.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return config


def read_weights(directory: Path, part: str) -> LazyArrays:
    """The weights of one part: safetensors, or else a `.bin` (which wants torch); a variant's where there is no other.

    Raises:
      UserError: there are none, they cannot be read, or torch is missing for a `.bin`.
    """
    path = _weights(directory, part)
    if path is None:
        raise UserError(f"{directory / part} holds no weights; {' or '.join(_FILES[part])} must be there.")
    names, load = _read_bin(path) if path.suffix == ".bin" else _read_safetensors(path)
    return LazyArrays({_current(name): name for name in names}, load)


@contextlib.contextmanager
def replacing_folder(directory: Path) -> Iterator[Path]:
    """Gives a folder to write in, which becomes `directory` when all went well and vanishes when not."""
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    work.chmod(0o755)
    try:
        yield work
        if directory.exists():
            shutil.rmtree(directory)
        work.rename(directory)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def write_part(
    directory: Path, part: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes one part's config, and its weights as safetensors that torch reads."""
    from safetensors.numpy import save_file

    folder = directory / part
    folder.mkdir()
    (folder / CONFIG_NAME[part]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if arrays is not None:
        save_file(dict(arrays), folder / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})


def copy_screening(source: Path, target: Path) -> tuple[str, ...]:
    """Copies the safety checker and what prepares pictures for it into `target`; the parts that were there."""
    there = tuple(part for part in SCREENING if (source / part / CONFIG_NAME[part]).is_file())
    for part in there:
        _copy_part(source, target, part)
    return there


def copy_decoder(source: Path, target: Path) -> None:
    """Copies all parts of a diffusers folder into `target`."""
    for part in NEEDED:
        _copy_part(source, target, part)
    copy_screening(source, target)


def _copy_part(source: Path, target: Path, part: str) -> None:
    """A config and its weights, which go by their plain name; of weights in several formats one is enough."""
    (target / part).mkdir()
    shutil.copyfile(source / part / CONFIG_NAME[part], target / part / CONFIG_NAME[part])
    weights = _weights(source, part)
    if weights is not None:
        plain = next(name for name in _FILES[part] if name.endswith(weights.suffix))
        shutil.copyfile(weights, target / part / plain)


def _weights(directory: Path, part: str) -> Path | None:
    """The file with a part's weights: the plain name before a variant's, safetensors before `.bin`."""
    for variant in _VARIANTS:
        for name in map(Path, _FILES.get(part, ())):
            path = directory / part / f"{name.stem}{variant}{name.suffix}"
            if path.is_file():
                return path
    return None


def _current(name: str) -> str:
    for old, new in _LEGACY.items():
        name = name.replace(old, new)
    return name


def _read_safetensors(path: Path) -> tuple[list[str], Callable[[str], np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    return list(file.keys()), file.get_tensor


def _read_bin(path: Path) -> tuple[list[str], Callable[[str], np.ndarray]]:
    try:
        import torch
    except ImportError:
        raise UserError(f"Reading {path} wants PyTorch; install torch, or give safetensors.") from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a different kind for each way in which a file can be broken
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        if tensor.dtype is torch.bfloat16:
            import ml_dtypes

            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    return list(tensors), read
