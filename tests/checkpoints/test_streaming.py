"""Parameters written layer by layer, several at a time, are those that are read."""

import numpy as np
from etils import epath

from emu_jax.checkpoints import streaming
from emu_jax.checkpoints.params import load_params
from emu_jax.checkpoints.streaming import LazyParameter, write_params


def test_a_stack_larger_than_one_write(tmp_path, monkeypatch):
    """Seven layers, two or so in each write, the last write shorter; beside it a whole array and a small one."""
    monkeypatch.setattr(streaming, "_WRITE_BYTES", 2 * 2**20)
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", 2**20)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in {"stack": (7, 512, 512), "whole": (600, 512), "small": (7, 5)}.items()
    }
    made: list[int] = []

    def layer(i: int) -> np.ndarray:
        made.append(i)
        return arrays["stack"][i]

    parameters = {
        "block/stack": LazyParameter((7, 512, 512), np.dtype(np.float32), True, layer),
        "block/whole": LazyParameter((600, 512), np.dtype(np.float32), False, lambda _: arrays["whole"]),
        "small": LazyParameter((7, 5), np.dtype(np.float32), True, lambda i: arrays["small"][i]),
    }
    written: list[int] = []
    write_params(epath.Path(tmp_path) / "params", parameters, progress=written.append)
    params = load_params(tmp_path)
    np.testing.assert_array_equal(params["block"]["stack"], arrays["stack"])
    np.testing.assert_array_equal(params["block"]["whole"], arrays["whole"])
    np.testing.assert_array_equal(params["small"], arrays["small"])
    assert made == list(range(7))
    assert sum(written) == sum(array.nbytes for array in arrays.values())
    assert len(written) > len(arrays)
