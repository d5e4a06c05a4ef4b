"""Which tensor of which PyTorch checkpoint becomes which parameter: the release, or LLaMA and EVA-CLIP as beginnings.

All names and shapes are checked before the first tensor is read; then parameters are made one layer at a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emu_jax.convert.emu_table import (
    CLIP_WIDTH,
    T5_VOCABULARY,
    Row,
    emu_rows,
    release_name,
    to_ours,
    unused_shapes,
)
from emu_jax.convert.files import Tensor, open_tensors
from emu_jax.convert.positions import resize_positions
from emu_jax.convert.streaming import LazyParameter
from emu_jax.errors import UserError
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import unbox

_POSITIONS = "vision_encoder/position_embedding"
_TABLES = ("decoder/token_embedding", "lm_head/projection/kernel")
_ONLY_EMU = ("cformer.", "ln_visual.", "decoder.lm.stu_regress_head.")


def open_sources(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of one or more checkpoints under the release's names, without what no Emu reads (CLIP's text side).

    Raises:
      UserError: a file is no checkpoint, or two of them hold the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for tensor in open_tensors(path).values():
            name = release_name(tensor.name)
            if name is None:
                continue
            if name in tensors:
                raise UserError(f"{name} is both in {tensors[name].file} and in {tensor.file}; name one of them.")
            tensors[name] = tensor
    if not tensors:
        raise UserError(f"{', '.join(map(str, paths))} holds no tensor of an Emu.")
    return tensors


def is_release(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are an Emu's tensors, and not a LLaMA's or an EVA-CLIP's alone."""
    return any(name.startswith(_ONLY_EMU) for name in tensors)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What goes where, checked by names and shapes.

    Attributes:
      parameters: every parameter of the Emu by "/"-joined path, ready to be made.
      unused: tensors to carry along.
      fresh: paths that no source covers; they are initialised.
      notes: what was adapted, one line each.
    """

    parameters: dict[str, LazyParameter]
    unused: dict[str, Tensor]
    fresh: tuple[str, ...]
    notes: tuple[str, ...]


def plan_import(tensors: Mapping[str, Tensor], config: EmuConfig, *, resize: bool = False, seed: int = 0) -> Plan:
    """Matches the tensors with the table.

    Args:
      tensors: from `open_sources`.
      config: sizes of the Emu to be.
      resize: whether positions of another image size are interpolated; for LLaMA and EVA-CLIP they always are.
      seed: of what is initialised anew.

    Raises:
      UserError: a tensor is unknown, missing, or of another shape; all of them are named.
    """
    rows = emu_rows(config)
    starting = not is_release(tensors)
    tensors = _untied(dict(tensors), starting)
    covered = {_part(row) for row in rows if any(name in tensors for name in row.names)}
    needed = [row for row in rows if not starting or _part(row) in covered]
    unused = {name: tensors[name] for name in unused_shapes(config) if name in tensors}

    known = {name for row in rows for name in row.names} | set(unused)
    problems = _listed("unknown to Emu", [t.name for name, t in tensors.items() if name not in known])
    problems += _listed("missing", [name for row in needed for name in row.names if name not in tensors])
    notes: list[str] = []
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, wanted {list(row.shape)}"
        for row in needed
        for name in row.names
        if name in tensors and not _fits(row, tensors[name].shape, starting=starting, resize=resize or starting)
    ]
    misshapen += [
        f"{name} is {list(tensors[name].shape)}, wanted {list(shape)}"
        for name, shape in unused_shapes(config).items()
        if name in unused and not _fits_unused(tensors[name].shape, shape)
    ]
    problems += _listed("of another shape", misshapen)
    if problems:
        raise UserError(f"The checkpoint does not fit the model: {'; '.join(problems)}. Nothing was written.")

    fresh_dtype = _common({tensors[name].dtype for row in needed for name in row.names} or {np.dtype(np.float32)})
    parameters: dict[str, LazyParameter] = {}
    for row in rows:
        if row in needed:
            parameters[row.path], note = _from_torch(row, [tensors[name] for name in row.names])
            notes += note
        else:
            parameters[row.path] = _initialised(config, row, fresh_dtype, seed=seed)
    fresh = tuple(row.path for row in rows if row not in needed)
    return Plan(parameters, unused, fresh, tuple(notes))


def release_to_params(tensors: Mapping[str, Tensor], config: EmuConfig, *, dtype: Any = None) -> dict[str, Any]:
    """The whole parameter tree in memory, as NumPy arrays; floating-point ones as `dtype` where it is given."""
    plan = plan_import(tensors, config)
    arrays = {}
    for path, parameter in plan.parameters.items():
        array = parameter.materialize()
        arrays[path] = array if dtype is None else array.astype(dtype)
    return traverse_util.unflatten_dict(arrays, sep="/")


def read_checked(tensor: Tensor) -> np.ndarray:
    """The tensor's values. Raises UserError where one of them is NaN or infinite."""
    array = tensor.read()
    if not np.issubdtype(array.dtype, np.integer) and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise UserError(f"{tensor.name} in {tensor.file} holds {count} NaN or infinite values; the file is damaged.")
    return array


def _part(row: Row) -> str:
    """What comes or is missing as a whole: EVA's tower, LLaMA (with its head), and what only an Emu has."""
    if "lora_" in row.path:
        return "lora"
    top = row.path.split("/")[0]
    return "decoder" if top == "lm_head" else top


def _listed(what: str, names: list[str], count: int = 6) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return [f"{len(names)} {what} ({', '.join(names[:count])}{more})"]


def _untied(tensors: dict[str, Tensor], starting: bool) -> dict[str, Tensor]:
    """A LLaMA that keeps one table for both ends gets its head from there."""
    table, head = "decoder.lm.model.embed_tokens.weight", "decoder.lm.lm_head.weight"
    if starting and table in tensors and head not in tensors:
        tensors[head] = tensors[table]
    return tensors


def _fits(row: Row, shape: tuple[int, ...], *, starting: bool, resize: bool) -> bool:
    if shape == row.shape:
        return True
    if row.path == _POSITIONS and resize:
        patches = round((shape[1] - 1) ** 0.5) if len(shape) == 3 else 0
        return shape == (1, patches**2 + 1, row.shape[2])
    return row.path in _TABLES and starting and shape[1:] == row.shape[1:] and shape[0] < row.shape[0]


def _fits_unused(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """How many rows CLIP's projection and T5's table have is not Emu's affair."""
    if wanted[0] in (CLIP_WIDTH, T5_VOCABULARY):
        return len(shape) == len(wanted) and shape[1:] == wanted[1:]
    return shape == wanted


def _from_torch(row: Row, tensors: list[Tensor]) -> tuple[LazyParameter, list[str]]:
    dtype = _common({tensor.dtype for tensor in tensors})
    adapt: Callable[[np.ndarray], np.ndarray] = lambda array: array
    notes = []
    if tensors[0].shape != row.shape and row.path == _POSITIONS:
        adapt = lambda array: resize_positions(array, row.shape[1])
        notes = [f"positions interpolated from {tensors[0].shape[1] - 1} to {row.shape[1] - 1} patches"]
    elif tensors[0].shape != row.shape:
        adapt = lambda array: _with_mean_rows(array, row.shape[0])
        notes = [f"{tensors[0].name}: {row.shape[0] - tensors[0].shape[0]} rows added, the mean of the others"]

    def layer(i: int) -> np.ndarray:
        return to_ours(row, adapt(read_checked(tensors[i])))

    return LazyParameter(row.stacked, dtype, row.layers is not None, layer), notes


def _common(dtypes: set[np.dtype]) -> np.dtype:
    """The type that holds all of these exactly (float32 for float16 with bfloat16)."""
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))


def _with_mean_rows(table: np.ndarray, rows: int) -> np.ndarray:
    """New vocabulary rows begin as the mean of the old (Emu's release does the same)."""
    mean = table.mean(axis=0, dtype=np.float32, keepdims=True).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, rows - table.shape[0], axis=0)])


def _initialised(config: EmuConfig, row: Row, dtype: np.dtype, *, seed: int) -> LazyParameter:
    """A parameter as `Emu.init` makes it, one layer at a time, so that no more than a layer is ever held."""
    init, paths = _traced_init(config)
    place = paths.index(row.path)
    make = jax.jit(lambda key: jaxpr_as_fun(init)(key)[place])  # the others are dead code to the compiler

    def layer(i: int) -> np.ndarray:
        made = np.asarray(make(jax.random.fold_in(jax.random.key(seed), i)))
        return (made[0] if row.layers is not None else made).astype(dtype)

    return LazyParameter(row.stacked, dtype, row.layers is not None, layer)


@functools.lru_cache(maxsize=1)
def _traced_init(config: EmuConfig) -> tuple[ClosedJaxpr, tuple[str, ...]]:
    """`Emu.init` of one layer each, and its parameters' paths in order: traced once for all that are made by it."""
    shallow = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, num_layers=1),
        causal_former=dataclasses.replace(config.causal_former, num_layers=1),
        decoder=dataclasses.replace(config.decoder, num_layers=1),
    )
    model = Emu(shallow, image_token_id=0)
    tokens = jnp.zeros((1, config.causal_former.num_image_tokens), jnp.int32)
    images = jnp.zeros((1, 1, config.vision.image_size, config.vision.image_size, 3), jnp.float32)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return traverse_util.flatten_dict(unbox(model.init(key, tokens, images)["params"]), sep="/")

    traced, shapes = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0))
    return traced, tuple(sorted(shapes))
