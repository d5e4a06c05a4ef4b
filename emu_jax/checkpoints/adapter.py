"""Adapters: what tuning changed in a model, without the model.

An adapter directory has `adapter.json`, the description, and `adapter.safetensors`: low-rank adapters, other parameters
that were trained, and the rows of new tokens. It fits one base only, which it knows by a fingerprint.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from emu_jax.checkpoints.model_config import find_config, read_config
from emu_jax.checkpoints.model_directory import ModelParts, boxed_shapes, params_directory
from emu_jax.checkpoints.params import check_fits
from emu_jax.checkpoints.step import PARAMS, digest, read_record
from emu_jax.checkpoints.streaming import StoredParams
from emu_jax.checkpoints.vocabulary import TABLES
from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.io.files import atomic_folder, read_json, write_json
from emu_jax.io.paths import absolute_path
from emu_jax.io.safetensors_files import open_safetensors, write_safetensors
from emu_jax.io.tensors import tensor_of
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import EmuConfig
from emu_jax.sharding.specs import shardings, unbox

DESCRIPTION, WEIGHTS = "adapter.json", "adapter"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A description and its arrays.

    Attributes:
      base: fingerprint of the model that it changes.
      lora: the low-rank adapters; None if there are none.
      vocab_size: of the tuned model.
      known_tokens: vocabulary size of the base; the arrays of the vocabulary tables hold the rows from there on, unless
        they are complete.
      arrays: by path, joined by "/".
    """

    base: str
    lora: LoraConfig | None
    vocab_size: int
    known_tokens: int
    arrays: Mapping[str, np.ndarray]

    def summary(self) -> str:
        """Return one line with the contents."""
        of_lora = [path for path in self.arrays if "/lora_" in path]
        others = [path for path in self.arrays if path not in of_lora]
        size = sum(array.nbytes for array in self.arrays.values())
        parts = []
        if self.lora is not None:
            layers = sorted({path.rpartition("/")[0] for path in of_lora})
            parts.append(f"LoRA of rank {self.lora.rank} on {', '.join(layers)}")
        if self.vocab_size > self.known_tokens:
            parts.append(f"{self.vocab_size - self.known_tokens} new tokens")
        parts += [f"{path} {list(self.arrays[path].shape)}" for path in others]
        return f"{size / 1e6:.1f} MB for the base {self.base[:12]}: {'; '.join(parts)}"


def base_fingerprint(directory: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the fingerprints of all parameters of a model directory, a run, or a step.

    Raises:
      UserError: there are no parameters.
    """
    stored_in = params_directory(Path(directory))
    if stored_in is None:
        raise UserError(f"{directory} is not a model directory. Import other formats with import-torch first.")
    return _fingerprint(absolute_path(stored_in))


def _fingerprint(stored_in: epath.Path) -> str:
    record = read_record(stored_in)
    if record is None:
        raise UserError(f"{stored_in} has no fingerprints: it was saved by an older version. Save it again.")
    prefix = f"['{PARAMS}']"
    return digest({name: value[:2] for name, value in record.arrays.items() if name.startswith(prefix)})


def make_adapter(checkpoint: str | os.PathLike[str], base: str | os.PathLike[str]) -> Adapter:
    """Return what the tuned model `checkpoint` has and `base` does not: new parameters, and those that differ.

    Args:
      checkpoint: a model directory, a run, or a step.
      base: the model that it was tuned from.

    Raises:
      UserError: one of them is not a model, or they are of different sizes.
    """
    tuned, config = open_params(checkpoint)
    arrays = ((path, tuned.read(path)) for path in tuned.shapes)
    return difference(arrays, config=config, base=base, source=checkpoint)


def difference(
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    config: EmuConfig,
    base: str | os.PathLike[str],
    source: str | os.PathLike[str],
) -> Adapter:
    """Return an adapter of those arrays that `base` does not have or that differ from its own.

    Args:
      arrays: paths and parameters of a tuned model; not necessarily all of them.
      config: of the tuned model.
      base: a model directory, a run, or a step.
      source: named in errors.

    Raises:
      UserError: `base` is not a model, or a parameter has another shape there.
    """
    original, base_config = open_params(base)
    known, vocab_size = base_config.decoder.vocab_size, config.decoder.vocab_size
    changed = {}
    for path, array in arrays:
        if path not in original.shapes:
            changed[path] = array
            continue
        reference = original.read(path)
        if path in TABLES:
            array, reference = token_rows(array, path, 0, vocab_size), token_rows(reference, path, 0, known)
            if _equal(token_rows(array, path, 0, known), reference):
                if vocab_size > known:
                    changed[path] = token_rows(array, path, known, vocab_size)
                continue
        elif array.shape != reference.shape:
            raise UserError(f"{source} was not tuned from {base}: {path} has another shape.")
        if not _equal(array, reference):
            changed[path] = array
    return Adapter(base_fingerprint(base), config.lora, vocab_size, known, changed)


def open_params(directory: str | os.PathLike[str]) -> tuple[StoredParams, EmuConfig]:
    """Open the parameters and the config of a model directory, a run, or a step.

    Raises:
      UserError: there are no parameters.
    """
    stored_in = params_directory(Path(directory))
    config = None if stored_in is None else find_config(stored_in)
    if stored_in is None or config is None:
        raise UserError(f"{directory} is not a model directory: it has no parameters.")
    return StoredParams(absolute_path(stored_in) / PARAMS), read_config(Path(config))


def token_rows(table: Any, path: str, start: int, stop: int) -> Any:
    """Return the rows of the tokens from `start` to `stop` of a vocabulary table."""
    return table[start:stop] if TABLES[path] == 0 else table[:, start:stop]


def _equal(array: np.ndarray, reference: np.ndarray) -> bool:
    """Compare in the dtype of `array`: frozen parameters may be stored in a smaller one than the base's."""
    return array.shape == reference.shape and bool(np.array_equal(array, reference.astype(array.dtype)))


def save_adapter(directory: Path, adapter: Adapter) -> None:
    """Write an adapter directory, complete or not at all.

    Raises:
      UserError: the directory exists or cannot be written.
    """
    described = {
        "format": _FORMAT,
        "base": adapter.base,
        "lora": None if adapter.lora is None else to_dict(adapter.lora),
        "vocab_size": adapter.vocab_size,
        "known_tokens": adapter.known_tokens,
        "parameters": {path: list(array.shape) for path, array in adapter.arrays.items()},
    }
    with atomic_folder(directory) as temporary:
        write_safetensors(temporary, [tensor_of(path, array) for path, array in adapter.arrays.items()], stem=WEIGHTS)
        write_json(temporary / DESCRIPTION, described)


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter directory.

    Raises:
      UserError: it is not one, or it is damaged.
    """
    if not (directory / DESCRIPTION).is_file():
        raise UserError(f"{directory} is not an adapter: there is no {DESCRIPTION} in it.")
    values = read_json(directory / DESCRIPTION)
    expected = {"format": int, "base": str, "vocab_size": int, "known_tokens": int, "parameters": dict}
    wrong = not isinstance(values, dict) or any(not isinstance(values.get(n), kind) for n, kind in expected.items())
    if wrong or values["format"] != _FORMAT:
        raise UserError(f"{directory / DESCRIPTION} is not the description of an adapter of format {_FORMAT}.")
    files = sorted(directory.glob(f"{WEIGHTS}*.safetensors"))
    arrays = {tensor.name: tensor.read_finite() for file in files for tensor in open_safetensors(file)}
    if {path: list(array.shape) for path, array in arrays.items()} != values["parameters"]:
        raise UserError(f"The weights in {directory} are not those that {DESCRIPTION} lists. Copy it again.")
    lora = values.get("lora")
    return Adapter(
        base=values["base"],
        lora=None if lora is None else from_config_dict(LoraConfig, lora, path=f"{DESCRIPTION}: lora"),
        vocab_size=values["vocab_size"],
        known_tokens=values["known_tokens"],
        arrays=arrays,
    )


def check_base(adapter: Adapter, base: str | os.PathLike[str], *, source: str | os.PathLike[str]) -> None:
    """Raise UserError unless `base` is the model that the adapter of `source` changes."""
    found = base_fingerprint(base)
    if found != adapter.base:
        raise UserError(
            f"The adapter {source} was trained on a base with the fingerprint {adapter.base[:12]}, but {base} has "
            f"{found[:12]}. Name the model that it was trained on."
        )


def adapted_config(config: EmuConfig, adapter: Adapter) -> EmuConfig:
    """Return the config of the tuned model, from that of its base."""
    decoder = dataclasses.replace(config.decoder, vocab_size=adapter.vocab_size)
    return dataclasses.replace(config, decoder=decoder, lora=adapter.lora)


def adapt(parts: ModelParts, adapter: Adapter, *, mesh: Mesh | None = None) -> ModelParts:
    """Return the tuned model. Arrays that the adapter does not change are those of `parts`, not copies.

    Raises:
      UserError: the adapter does not fit the sizes of the model.
    """
    config = adapted_config(parts.config, adapter)
    boxed = boxed_shapes(config)
    shapes = traverse_util.flatten_dict(unbox(boxed), sep="/")
    layout = None if mesh is None else traverse_util.flatten_dict(shardings(boxed, mesh), sep="/")
    params = traverse_util.flatten_dict(parts.params, sep="/")
    for path, array in adapter.arrays.items():
        if path not in shapes:
            raise UserError(f"The adapter has {path}, which is not a parameter of this model.")
        new = jnp.asarray(array, shapes[path].dtype)
        if path in TABLES:
            new = join_table(params[path], new, path, adapter, rows=shapes[path].shape[TABLES[path]])
        params[path] = new if layout is None else jax.device_put(new, layout[path])
    tree = traverse_util.unflatten_dict(params, sep="/")
    if not _is_quantized(tree):
        check_fits(tree, unbox(boxed), source="The adapter")
    return dataclasses.replace(parts, config=config, params=tree)


def join_table(table: Any, new: jax.Array, path: str, adapter: Adapter, *, rows: int) -> Any:
    """Return the padded vocabulary table with the rows of the adapter: the new tokens, or all."""
    axis = TABLES[path]
    count = new.shape[axis]
    if count < adapter.vocab_size:
        new = jnp.concatenate(
            [token_rows(table, path, 0, adapter.vocab_size - count).astype(new.dtype), new], axis=axis
        )
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, rows - adapter.vocab_size)
    return jnp.pad(new, padding)


def _is_quantized(params: Any) -> bool:
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))
