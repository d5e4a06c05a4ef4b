"""Parameters that are written in groups of layers are read back equal."""

import numpy as np
from etils import epath

from emu_jax.checkpoints import streaming
from emu_jax.checkpoints.params import load_params
from emu_jax.checkpoints.streaming import LazyParameter, write_params


def test_a_stacked_array_that_is_larger_than_one_write(tmp_path, monkeypatch):
    """Seven layers with about two per write and a shorter last write; an array without layers; a small array."""
    monkeypatch.setattr(streaming, "_WRITE_BYTES", 2 * 2**20)
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", 2**20)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in {"stack": (7, 512, 512), "single": (600, 512), "small": (7, 5)}.items()
    }
    made: list[int] = []

    def layer(i: int) -> np.ndarray:
        made.append(i)
        return arrays["stack"][i]

    parameters = {
        "block/stack": LazyParameter((7, 512, 512), np.dtype(np.float32), True, layer),
        "block/single": LazyParameter((600, 512), np.dtype(np.float32), False, lambda _: arrays["single"]),
        "small": LazyParameter((7, 5), np.dtype(np.float32), True, lambda i: arrays["small"][i]),
    }
    written: list[int] = []
    write_params(epath.Path(tmp_path) / "params", parameters, progress=written.append)
    params = load_params(tmp_path)
    np.testing.assert_array_equal(params["block"]["stack"], arrays["stack"])
    np.testing.assert_array_equal(params["block"]["single"], arrays["single"])
    np.testing.assert_array_equal(params["small"], arrays["small"])
    assert made == list(range(7))
    assert sum(written) == sum(array.nbytes for array in arrays.values())
    assert len(written) > len(arrays)
