"""Parameters alone on disk: the DIR/params of a model directory, and warm starts from another run's."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from emu_jax.checkpoints.shapes import abbreviate, mismatches
from emu_jax.checkpoints.vocabulary import grow, growing_tables, vocabulary_of
from emu_jax.errors import UserError

Tree = dict[str, Any]


def save_params(directory: str | epath.Path, params: Tree) -> None:
    """Writes DIR/params, replacing what is there; complete or not there at all."""
    path = epath.Path(directory).absolute() / "params"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, params, force=True)


def load_params(directory: str | epath.Path, *, shardings: Tree | None = None, dtype: Any = None) -> Tree:
    """Reads DIR/params.

    Args:
      directory: a model directory, or one step of a run (WORKDIR/checkpoints/STEP).
      shardings: a tree of shardings, the structure of the parameters; each array is read straight into its shards.
        None reads NumPy arrays.
      dtype: floating-point parameters are cast to it while they are read; None keeps what was saved.

    Raises:
      UserError: there are no parameters in the directory, or they cannot be read.
    """
    path = _params_path(directory)
    saved = _saved_shapes(path)

    def wanted(leaf: Any) -> np.dtype:
        floating = np.issubdtype(leaf.dtype, np.floating) or leaf.dtype == jax.numpy.bfloat16
        return leaf.dtype if dtype is None or not floating else np.dtype(dtype)

    if shardings is None:
        return _restore(path, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, wanted(leaf)), saved))
    structs = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, wanted(leaf), sharding=sharding), saved, shardings
    )
    return _restore(path, structs)


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """What a warm start took over, by "/"-joined path.

    Attributes:
      fitted: taken over.
      missing: wanted by the model, not in the source; kept as initialised.
      unused: in the source, unknown to the model.
      other_shape: "path: saved shape, wanted shape"; kept as initialised.
      grown: "path: from so many to so many tokens", of those taken over; the new begin as the mean of the others.
    """

    fitted: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    other_shape: tuple[str, ...]
    grown: tuple[str, ...]

    def summary(self) -> str:
        """A line for each list that is not empty."""
        rows = [("taken over", self.fitted), ("not in the source, initialised anew", self.missing)]
        rows += [("in the source, not in this model", self.unused), ("of another shape", self.other_shape)]
        rows += [("given new tokens, the mean of the others", self.grown)]
        lines = [f"{len(names)} parameters {what}" + (f": {abbreviate(names)}" if what != "taken over" else "")
                 for what, names in rows if names]  # fmt: skip
        return "\n".join(lines)


def warm_start(directory: str | epath.Path, like: Tree, *, vocab_size: int | None = None) -> tuple[Tree, WarmStart]:
    """What DIR/params holds under the same path and shape as `like`, read in its dtype and shards.

    Args:
      directory: a model directory, or one step of a run.
      like: the model's parameters, or their shapes with shardings.
      vocab_size: of the model; tokens that the source does not know begin as the mean of those it does. None: the
        tables are taken over as they are.

    Raises:
      UserError: no parameters there, or none of them fits.
    """
    path = _params_path(directory)
    saved = traverse_util.flatten_dict(_saved_shapes(path), sep="/")
    own = traverse_util.flatten_dict(like, sep="/")
    known = None if vocab_size is None else vocabulary_of(Path(directory))
    grows = known is not None and vocab_size is not None and known < vocab_size
    tables = growing_tables(saved, own) if grows else {}
    fitted = [n for n in own if n in tables or (n in saved and tuple(saved[n].shape) == tuple(own[n].shape))]
    other = [n for n in own if n in saved and n not in set(fitted)]
    report = WarmStart(
        fitted=tuple(fitted),
        missing=tuple(name for name in own if name not in saved),
        unused=tuple(name for name in saved if name not in own),
        other_shape=tuple(f"{n}: {tuple(saved[n].shape)}, wanted {tuple(own[n].shape)}" for n in other),
        grown=tuple(f"{n}: from {known} to {vocab_size} tokens" for n in tables),
    )
    if not fitted:
        raise UserError(f"None of the {len(saved)} parameters in {path} fits this model.\n{report.summary()}")
    structs = {n: jax.ShapeDtypeStruct(saved[n].shape, own[n].dtype, sharding=own[n].sharding) for n in fitted}
    restored = _restore(path, traverse_util.unflatten_dict(structs, sep="/"), partial=True)
    taken = traverse_util.flatten_dict(restored, sep="/")
    if tables:
        taken |= _grow_tables(taken, own, axes=tables, known=known, vocab_size=vocab_size)
    return traverse_util.unflatten_dict(taken, sep="/"), report


def _grow_tables(taken: Tree, own: Tree, *, axes: dict[str, int], known: int, vocab_size: int) -> Tree:
    """Return the vocabulary tables in the shapes and shardings of `own`, by one program for all of them."""

    def grow_all(tables: Tree) -> Tree:
        return {
            name: grow(table, axis=axes[name], known=known, vocab_size=vocab_size, rows=own[name].shape[axes[name]])
            for name, table in tables.items()
        }

    shardings = {name: own[name].sharding for name in axes}
    return jax.jit(grow_all, out_shardings=shardings)({name: taken[name] for name in axes})


def place_parameters(parts: Tree, like: Tree) -> Tree:
    """Copies of the arrays of `parts`, some of a model's parameters, in the dtypes and shards of `like`, which has all.

    Raises:
      UserError: a name or a shape that `like` does not have.
    """
    given = traverse_util.flatten_dict(parts, sep="/")
    wanted = {name: leaf for name, leaf in traverse_util.flatten_dict(like, sep="/").items() if name in given}
    check_fits(given, wanted, source="What the run is to begin with")
    placed = {name: _placed(given[name], leaf) for name, leaf in wanted.items()}
    return traverse_util.unflatten_dict(placed, sep="/")


def _placed(value: Any, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """A copy of `value` (on the host, of every process the same; or already on devices) as `like` lies."""
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
    path = epath.Path(directory).absolute() / "params"
    if not path.exists():
        raise UserError(f"{directory} holds no parameters (there is no {path.name}/ in it); name a model directory.")
    return path


def _saved_shapes(path: epath.Path) -> Tree:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.metadata(path).item_metadata.tree
    except Exception as error:
        raise UserError(f"The parameters in {path} cannot be read ({error}).") from error


def _restore(path: epath.Path, structs: Tree, *, partial: bool = False) -> Tree:
    restore_args = ocp.checkpoint_utils.construct_restore_args(structs)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(structs, restore_args=restore_args, partial_restore=partial)
            )
    except Exception as error:
        raise UserError(f"The parameters in {path} cannot be read ({error}).") from error
