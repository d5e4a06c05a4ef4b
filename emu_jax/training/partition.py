"""Select parameters by their paths: trainable or frozen, and the parts that metrics are reported for."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import traverse_util

Tree = dict[str, Any]


def path_name(path: Sequence[Any]) -> str:
    """Return a key path of `jax.tree_util` as text, such as "decoder/blocks/attention/query/kernel", without boxes."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)
    return "/".join(str(key) for key in keys)


def flatten(tree: Tree) -> dict[str, Any]:
    """Flatten {"a": {"b": 1}} to {"a/b": 1}; boxed parameters stay boxed."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> Tree:
    """Invert `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def split(params: Tree, patterns: Sequence[str]) -> tuple[Tree, Tree]:
    """Split `params` into the parameters that a pattern matches, and all others.

    A pattern is a regex that is searched in the "/"-joined path: `^decoder/` selects the decoder, `lora` selects
    everything with lora in a name.
    """
    matches = matcher(patterns)
    flat = flatten(params)
    trainable = {path: value for path, value in flat.items() if matches(path)}
    frozen = {path: value for path, value in flat.items() if path not in trainable}
    return unflatten(trainable), unflatten(frozen)


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """Invert `split`."""
    return unflatten(flatten(frozen) | flatten(trainable))


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function of a path that is True if any of the regexes is found in it."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda path: any(pattern.search(path) for pattern in compiled)


def by_part(tree: Tree) -> dict[str, list[jax.Array]]:
    """Return the leaves under each top-level name: the parts of a model."""
    return {part: jax.tree.leaves(subtree) for part, subtree in sorted(tree.items())}
