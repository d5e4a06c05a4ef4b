"""The mesh `data x fsdp x tensor`: ICI inside a slice, `data` across slices (DCN)."""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from emu_jax.errors import UserError
from emu_jax.sharding.rules import MESH_AXES


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes within one slice; one of them may be -1, "what is left". Slices multiply `data`.

    Where `data` is what is left, `tensor` and `fsdp` are cut down to the chips that there are.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


def read_mesh(text: str) -> MeshConfig:
    """`"data:1,fsdp:-1,tensor:4"` as a MeshConfig; an axis that is not named has size 1.

    Raises:
      UserError: another axis, or a size that is no number.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition(":")
        if axis not in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(f"The mesh {text!r} is not understood at {part!r}; write it as in data:1,fsdp:64,tensor:1.")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all) with Auto axes, for `jax.set_mesh`.

    The device order follows the torus (`mesh_utils`): in raw order a 3D slice turns weight gathers into all-reduces.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = _fill((config.data, config.fsdp, config.tensor), len(devices) // slices)
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1), devices=devices)
    elif devices[0].platform == "tpu":
        grid = _on_torus(shape, devices)
    else:
        grid = np.asarray(devices, dtype=object).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _on_torus(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(shape, devices=devices)
    except NotImplementedError:  # an axis takes a part of a side, as 128 of 16 x 16
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)


def _fill(sizes: tuple[int, int, int], count: int) -> tuple[int, ...]:
    """Replaces the -1 in `sizes` so that they multiply to `count`: `(1, -1, 2), 8 -> (1, 4, 2)`.

    `(-1, 128, 1)` is `(1, 64, 1)` for 64 and `(2, 128, 1)` for 256; `(-1, 1, 8)` is `(1, 1, 4)` for 4.
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
