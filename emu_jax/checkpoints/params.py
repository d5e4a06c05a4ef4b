"""Save and load DIR/params of a model directory, and start a model from the parameters of another."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from emu_jax.checkpoints.fingerprint import differing, fingerprints
from emu_jax.checkpoints.shapes import abbreviate, mismatches
from emu_jax.checkpoints.step import (
    OPTIMIZER,
    PARAMS,
    DamagedError,
    StepRecord,
    check_shapes,
    read_record,
    remove_record,
    step_config,
    steps_in,
    write_record,
)
from emu_jax.checkpoints.vocabulary import TokenSources, grow, growing_tables, vocabulary_of
from emu_jax.errors import UserError
from emu_jax.io.paths import absolute_path, store_errors

Tree = dict[str, Any]


def save_params(directory: str | epath.Path, params: Tree) -> None:
    """Write DIR/params, complete or not at all, and their checksums. Existing parameters are replaced."""
    path = absolute_path(directory) / "params"
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_record(path.parent)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, params, force=True)
    arrays = fingerprints({PARAMS: params})
    if jax.process_index() == 0:
        write_record(path.parent, arrays)


def load_params(directory: str | epath.Path, *, shardings: Tree | None = None, dtype: Any = None) -> Tree:
    """Read DIR/params.

    Args:
      directory: a model directory, or one step of a run (WORKDIR/checkpoints/STEP).
      shardings: a tree of shardings with the structure of the parameters. Each array is read directly into its shards.
        None: read NumPy arrays.
      dtype: floating-point parameters are cast to it while they are read. None: as saved.

    Raises:
      UserError: there are no parameters in the directory, they cannot be read, or they are not what was saved. If an
        older step of the run is good, the message names it.
    """
    with naming_good_step(directory):
        return _load_params(_params_path(directory), shardings=shardings, dtype=dtype)


def _load_params(path: epath.Path, *, shardings: Tree | None, dtype: Any) -> Tree:
    record = read_record(path.parent)
    saved = saved_shapes(path, record)

    def target_dtype(leaf: Any) -> np.dtype:
        floating = np.issubdtype(leaf.dtype, np.floating) or leaf.dtype == jax.numpy.bfloat16
        return leaf.dtype if dtype is None or not floating else np.dtype(dtype)

    if shardings is None:
        structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, target_dtype(leaf)), saved)
        return read_arrays(path, structs, saved, record)
    structs = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, target_dtype(leaf), sharding=sharding), saved, shardings
    )
    return read_arrays(path, structs, saved, record)


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Report of a warm start: parameters by path, joined by "/".

    Attributes:
      loaded: in the source and in the model.
      missing: in the model only; they stay as initialized.
      unused: in the source only.
      other_shape: "path: saved shape, expected shape"; they stay as initialized.
      grown: "path: from N to M tokens", for loaded vocabulary tables.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    other_shape: tuple[str, ...]
    grown: tuple[str, ...]

    def summary(self) -> str:
        """Return one line for each list that is not empty."""
        lines = [f"{len(self.loaded)} parameters loaded"] if self.loaded else []
        for description, names in (
            ("not in the source, initialized", self.missing),
            ("in the source, not in this model", self.unused),
            ("of a different shape, initialized", self.other_shape),
            ("with new tokens, each the mean of known ones", self.grown),
        ):
            if names:
                lines.append(f"{len(names)} parameters {description}: {abbreviate(names)}")
        return "\n".join(lines)


def warm_start(
    directory: str | epath.Path,
    like: Tree,
    *,
    vocab_size: int | None = None,
    token_sources: TokenSources | None = None,
) -> tuple[Tree, WarmStart]:
    """Read the parameters in DIR/params with the same path and shape as in `like`, in its dtypes and shardings.

    Args:
      directory: a model directory, or one step of a run.
      like: the model's parameters, or their shapes with shardings.
      vocab_size: of the model. Tokens that the source does not have start as the mean of those it has. None: the tables
        are loaded as they are.
      token_sources: new token -> the known tokens whose mean it starts from instead.

    Returns:
      The loaded parameters, and a report.

    Raises:
      UserError: there are no parameters, none of them fits, or they are not what was saved.
    """
    with naming_good_step(directory):
        return _warm_start(_params_path(directory), like, vocab_size=vocab_size, token_sources=token_sources)


def _warm_start(
    path: epath.Path, like: Tree, *, vocab_size: int | None, token_sources: TokenSources | None
) -> tuple[Tree, WarmStart]:
    record = read_record(path.parent)
    saved_tree = saved_shapes(path, record)
    saved = traverse_util.flatten_dict(saved_tree, sep="/")
    own = traverse_util.flatten_dict(like, sep="/")
    known = None if vocab_size is None else vocabulary_of(path.parent)
    tables: dict[str, int] = {}
    if known is not None and vocab_size is not None and known < vocab_size:
        tables = growing_tables(saved, own)
    loaded = [n for n in own if n in tables or (n in saved and tuple(saved[n].shape) == tuple(own[n].shape))]
    other = [n for n in own if n in saved and n not in set(loaded)]
    report = WarmStart(
        loaded=tuple(loaded),
        missing=tuple(name for name in own if name not in saved),
        unused=tuple(name for name in saved if name not in own),
        other_shape=tuple(f"{n}: {tuple(saved[n].shape)}, expected {tuple(own[n].shape)}" for n in other),
        grown=tuple(f"{n}: from {known} to {vocab_size} tokens" for n in tables),
    )
    if not loaded:
        raise UserError(f"None of the {len(saved)} parameters in {path} fits this model.\n{report.summary()}")
    structs = {n: jax.ShapeDtypeStruct(saved[n].shape, own[n].dtype, sharding=own[n].sharding) for n in loaded}
    restored = read_arrays(path, traverse_util.unflatten_dict(structs, sep="/"), saved_tree, record)
    params = traverse_util.flatten_dict(restored, sep="/")
    if tables and known is not None and vocab_size is not None:
        params |= _grow_tables(params, own, axes=tables, known=known, vocab_size=vocab_size, sources=token_sources)
    return traverse_util.unflatten_dict(params, sep="/"), report


def _grow_tables(
    params: Tree, own: Tree, *, axes: dict[str, int], known: int, vocab_size: int, sources: TokenSources | None
) -> Tree:
    """Return the vocabulary tables in the shapes and shardings of `own`, by one program for all of them."""

    def grow_all(tables: Tree) -> Tree:
        sizes: dict[str, Any] = {"known": known, "vocab_size": vocab_size, "sources": sources}
        return {
            name: grow(table, axis=axes[name], rows=own[name].shape[axes[name]], **sizes)
            for name, table in tables.items()
        }

    shardings = {name: own[name].sharding for name in axes}
    return jax.jit(grow_all, out_shardings=shardings)({name: params[name] for name in axes})


def copy_parameters(parts: Tree, like: Tree) -> Tree:
    """Copy the arrays of `parts`, some of a model's parameters, to the dtypes and shardings of `like`, which has all.

    Raises:
      UserError: `like` does not have a name, or has it in a different shape.
    """
    given = traverse_util.flatten_dict(parts, sep="/")
    expected = {name: leaf for name, leaf in traverse_util.flatten_dict(like, sep="/").items() if name in given}
    check_fits(given, expected, source="The start of the run")
    copies = {name: _copy(given[name], leaf) for name, leaf in expected.items()}
    return traverse_util.unflatten_dict(copies, sep="/")


def _copy(value: Any, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Copy `value`, which is on devices or is the same on the host of every process, in the sharding of `like`."""
    if isinstance(value, jax.Array):
        return jax.device_put(jnp.array(value, like.dtype), like.sharding)
    host = np.array(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: host[index])


def check_fits(saved: Any, expected: Any, *, source: str) -> None:
    """Compare two trees of arrays or shapes.

    Raises:
      UserError: the message lists what is missing, unknown, or of a different shape.
    """
    problems = mismatches(_shapes(expected), _shapes(saved))
    if problems:
        raise UserError(
            f"{source} is of a different model or optimizer: {problems}. "
            "Use the config that it was trained with, or another --workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = lambda path: "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    return {named(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _params_path(directory: str | epath.Path) -> epath.Path:
    path = absolute_path(directory) / PARAMS
    with store_errors(path):
        if path.exists():
            return path
    if steps := steps_in(path.parent / "checkpoints"):
        newest = path.parent / "checkpoints" / str(steps[-1])
        raise UserError(f"{directory} is a training run. Name one of its steps, such as {newest}.")
    if (path.parent / OPTIMIZER).exists():
        raise DamagedError(f"{PARAMS} is missing")
    raise UserError(f"{directory} has no {PARAMS}/ folder. Name a model directory.")


def saved_shapes(path: epath.Path, record: StepRecord | None) -> Tree:
    """Return the shapes and dtypes of the parameters at `path`, after a comparison with the record of the step.

    Raises:
      DamagedError: they cannot be read, or differ.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
    except Exception as error:
        raise DamagedError(f"its metadata cannot be read ({type(error).__name__})") from error
    if not tree:
        raise DamagedError("its metadata is missing or empty")
    leaves = jax.tree_util.tree_leaves_with_path({PARAMS: tree})
    check_shapes({jax.tree_util.keystr(name): leaf for name, leaf in leaves}, record, item=PARAMS)
    return tree


def read_arrays(path: epath.Path, structs: Tree, saved: Tree, record: StepRecord | None) -> Tree:
    """Read arrays and compare them with the record. An array in another dtype is cast after it is compared.

    Arrays that are cast are read one at a time, so that few of them are in memory in both dtypes.

    Args:
      path: of the parameters.
      structs: shapes, dtypes and shardings of the arrays to read; NumPy arrays are read where there is no sharding.
      saved: from `saved_shapes`.
      record: of the step; None to read without a comparison.

    Raises:
      DamagedError: an array cannot be read, or differs from the saved one.
    """
    targets = traverse_util.flatten_dict(structs, sep="/")
    stored = traverse_util.flatten_dict(saved, sep="/")
    cast = [] if record is None else [name for name, leaf in targets.items() if leaf.dtype != stored[name].dtype]
    groups = [[name] for name in cast]
    if rest := [name for name in targets if name not in set(cast)]:
        groups.append(rest)
    arrays: Tree = {}
    for names in groups:
        as_saved = {name: _with_dtype(targets[name], stored[name].dtype) if record else targets[name] for name in names}
        tree = _restore(path, traverse_util.unflatten_dict(as_saved, sep="/"), partial=len(names) < len(stored))
        if record is not None and (names_of := differing(fingerprints({PARAMS: tree}), record.arrays)):
            raise DamagedError(f"array {names_of[0]} differs from the saved one")
        flat = traverse_util.flatten_dict(tree, sep="/")
        arrays |= {name: flat[name].astype(targets[name].dtype) if name in cast else flat[name] for name in names}
    return traverse_util.unflatten_dict({name: arrays[name] for name in targets}, sep="/")


def _with_dtype(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)


def _restore(path: epath.Path, structs: Tree, *, partial: bool) -> Tree:
    restore_args = ocp.checkpoint_utils.construct_restore_args(structs)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(structs, restore_args=restore_args, partial_restore=partial)
            )
    except Exception as error:
        raise DamagedError(f"its parameters cannot be read ({type(error).__name__})") from error


@contextlib.contextmanager
def naming_good_step(directory: str | epath.Path) -> Iterator[None]:
    """Turn a DamagedError in the block into a UserError that names the newest good step of the same run.

    Args:
      directory: folder of the damaged step, or of a damaged model directory.
    """
    try:
        yield
    except DamagedError as error:
        step = absolute_path(directory)
        if not step.name.isdigit():
            raise UserError(f"{directory} is damaged: {error}. Copy or import it again.") from error
        others = (step.parent / str(other) for other in reversed(steps_in(step.parent)) if other != int(step.name))
        good = next((other for other in others if problem_of(other) is None), None)
        advice = "No other step of this run is good." if good is None else f"Use {good}."
        raise UserError(f"Checkpoint {step.name} in {step.parent} is damaged ({error}). {advice}") from error


def problem_of(step: epath.Path) -> str | None:
    """Return the damage of the parameters and the config of a step; None if they are good. One array is in memory."""
    try:
        record = read_record(step)
        step_config(step)
        path = _params_path(step)
        saved = saved_shapes(path, record)
        for name, leaf in traverse_util.flatten_dict(saved, sep="/").items():
            struct = traverse_util.unflatten_dict({name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)}, sep="/")
            read_arrays(path, struct, saved, record)
    except UserError as error:
        return str(error)
    return None
