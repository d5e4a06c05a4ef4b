"""Parameters by their paths: which train and which are frozen, and the parts that metrics are given by."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import traverse_util

Tree = dict[str, Any]


def path_name(path: Sequence[Any]) -> str:
    """A key path of `jax.tree_util` as in "decoder/layers/attention/query/kernel"; boxes leave no trace in it."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)
    return "/".join(str(key) for key in keys)


def flatten(tree: Tree) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a/b": 1}; boxed parameters stay whole."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def split(params: Tree, patterns: Sequence[str]) -> tuple[Tree, Tree]:
    """(what some pattern matches, the rest): two trees that together hold every parameter once.

    A pattern is a regex searched in the "/"-joined path: `^decoder/` is the decoder, `lora` all that has it in a name.
    """
    matches = matcher(patterns)
    flat = flatten(params)
    trainable = {path: value for path, value in flat.items() if matches(path)}
    frozen = {path: value for path, value in flat.items() if path not in trainable}
    return unflatten(trainable), unflatten(frozen)


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of `split`."""
    return unflatten(flatten(frozen) | flatten(trainable))


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether any of the regexes is found in a path."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda path: any(pattern.search(path) for pattern in compiled)


def by_part(tree: Tree) -> dict[str, list[jax.Array]]:
    """The leaves under each top-level name: the parts of a model."""
    return {part: jax.tree.leaves(subtree) for part, subtree in sorted(tree.items())}
