"""The device mesh `data x fsdp x tensor`: all axes within a slice (ICI), and `data` across slices (DCN)."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from emu_jax.bounds import Between, Checked
from emu_jax.errors import UserError
from emu_jax.sharding.rules import MESH_AXES

AxisSize = Annotated[int, Between(-1, 2**20)]


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
    """Sizes of the mesh axes within one slice. One size may be -1, the remaining devices. Slices multiply `data`.

    If `data` is -1, then `tensor` and `fsdp` are reduced to the number of devices where there are fewer.
    """

    data: AxisSize = 1
    fsdp: AxisSize = -1
    tensor: AxisSize = 1

    def __post_init__(self) -> None:
        for axis in MESH_AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise UserError(f"The mesh size of {axis} must be at least 1, or -1 for the rest, not {size}.")
        super().__post_init__()


def parse_mesh(text: str) -> MeshConfig:
    """Parse mesh sizes such as `"data:1,fsdp:-1,tensor:4"`. An axis that is left out has size 1.

    Raises:
      UserError: an unknown axis, or a size that is neither a positive integer nor -1.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition(":")
        if axis not in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(f"Cannot parse the mesh {text!r} at {part!r}; write it like data:1,fsdp:-1,tensor:1.")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh over `devices` (default: all) with Auto axes, for `jax.set_mesh`.

    Devices are ordered along the torus by `mesh_utils`. In raw device order, weight all-gathers on a 3D slice become
    all-reduces.

    Raises:
      UserError: the product of the sizes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = _fill((config.data, config.fsdp, config.tensor), len(devices) // slices)
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1), devices=devices)
    elif devices[0].platform == "tpu":
        grid = _torus_order(shape, devices)
    else:
        grid = np.asarray(devices, dtype=object).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _torus_order(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(shape, devices=devices)
    except NotImplementedError:  # an axis covers a part of a torus dimension, such as 128 of 16 x 16
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)


def _fill(sizes: tuple[int, int, int], count: int) -> tuple[int, ...]:
    """Replace the -1 in `sizes` so that their product is `count`.

    (1, -1, 2),   8   -> (1, 4, 2)
    (-1, 128, 1), 64  -> (1, 64, 1)
    (-1, 128, 1), 256 -> (2, 128, 1)
    (-1, 1, 8),   4   -> (1, 1, 4)
    """
    data, fsdp, tensor = sizes
    if data == -1:
        tensor = min(tensor, count)
        sizes = (data, min(fsdp, count // tensor), tensor)
    known = math.prod(size for size in sizes if size != -1)
    filled = tuple(count // known if size == -1 else size for size in sizes)
    if sizes.count(-1) > 1 or math.prod(filled) != count:
        named = " x ".join(f"{name}:{size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(f"The mesh {named} does not cover {count} devices; choose sizes whose product is {count}.")
    return filled
