"""Shardings of all parameters of the 14B on several meshes. `python -m tests.golden.shardings` writes the file.

Adam's moments are sharded like their parameters (tested in tests/training), so they are not listed.
"""

import json
import math
from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from emu_jax.data.batch import BatchConfig
from emu_jax.models.presets import emu_14b
from emu_jax.sharding.rules import MESH_AXES
from emu_jax.sharding.specs import shardings, unbox
from emu_jax.training.partition import flatten
from emu_jax.training.stages.pretrain import PretrainStage

PATH = Path(__file__).with_name("shardings_14b.json")
MESHES = {
    "v5p-64 chips": (1, 64, 1),
    "v5p-128 chips": (1, 128, 1),
    "fsdp over 256": (1, 256, 1),
    "v5e-256 chips": (2, 128, 1),
    "v5p-512 chips": (4, 64, 2),
    "v4-128 chips": (2, 16, 4),
}


def current() -> dict[str, dict[str, str]]:
    """Return mesh -> path -> "shape spec: bytes per device", and the sum under "all"."""
    batch = BatchConfig(batch_size=1, length=64, max_images=1, image_size=224)
    stage = PretrainStage(emu_14b(), batch, image_token_id=32003)
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    leaves = flatten(unbox(boxed))
    found = {}
    for name, sizes in MESHES.items():
        mesh = AbstractMesh(sizes, MESH_AXES)
        specs = flatten(shardings(boxed, mesh))
        rows, total = {}, 0
        for path, leaf in sorted(leaves.items()):
            size = math.prod(specs[path].shard_shape(leaf.shape)) * leaf.dtype.itemsize
            total += size
            rows[path] = f"{list(leaf.shape)} {specs[path].spec}: {size}"
        found[name] = {"all": f"{total / 2**20:.1f} MiB per device", **rows}
    return found


def main() -> None:
    PATH.write_text(json.dumps(current(), indent=1) + "\n")
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
