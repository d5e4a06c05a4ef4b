"""Conversion table of FID's Inception from `pt_inception-2015-12-05`, and the loading of these weights."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.convert.table import Row, Table, check_tensors, read_params
from emu_jax.evaluation.image_metrics.inception import BLOCKS, STEM, Layer
from emu_jax.io.tensor_files import open_tensors

_KERNEL, _VECTOR = (2, 3, 1, 0), (0,)
_RGB = 3
_UNUSED = ("fc.", "AuxLogits.")  # the classifiers


def inception_table() -> Table:
    """Return the rows of all parameters of `Inception`."""
    rows: list[Row] = []
    width = _RGB

    def add(layer: Layer, inputs: int, prefix: str = "") -> int:
        name, path, features = f"{prefix}{layer.name}", f"{prefix.replace('.', '/')}{layer.name}", layer.features
        rows.append(
            Row(
                f"{name}.conv.weight",
                (features, inputs, *layer.kernel),
                f"{path}/kernel",
                (*layer.kernel, inputs, features),
                _KERNEL,
            )
        )
        for theirs, ours in (
            ("weight", "scale"),
            ("bias", "bias"),
            ("running_mean", "mean"),
            ("running_var", "variance"),
        ):
            rows.append(Row(f"{name}.bn.{theirs}", (features,), f"{path}/{ours}", (features,), _VECTOR))
        return features

    for step in STEM:
        if not isinstance(step, str):
            width = add(step, width)
    for block in BLOCKS:
        prefix, total = f"{block.name}.", 0
        for branch in block.branches:
            channels = width
            for part in branch:
                layers = part if isinstance(part, tuple) else (part,)
                channels = sum([add(layer, channels, prefix) for layer in layers])
            total += channels
        total += width if block.pool_layer is None else add(block.pool_layer, width, prefix)
        width = total
    return tuple(rows)


def load_inception(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the parameters of `Inception` from `pt_inception-2015-12-05-*.pth`, or the same as safetensors.

    Raises:
      UserError: there is no such file, or it holds another network, such as torchvision's.
    """
    tensors = {
        name: tensor
        for name, tensor in open_tensors(Path(path)).items()
        if not name.startswith(_UNUSED) and not name.endswith("num_batches_tracked")
    }
    table = inception_table()
    check_tensors(table, tensors, source=str(path))
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), read_params(table, tensors))
