"""Damaged checkpoints: a wrong weight or data state is never used, whichever byte of a step is wrong."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from emu_jax.checkpoints.manager import Checkpoints
from emu_jax.checkpoints.model_config import find_config
from emu_jax.checkpoints.params import load_params, save_params, warm_start
from emu_jax.checkpoints.step import DamagedError, digest, newest_config, read_record, step_config
from emu_jax.checkpoints.streaming import LazyParameter, StoredParams, write_params
from emu_jax.errors import UserError

SEED, DAMAGES = 0, 40
CONFIG = {"model": {"width": 8}, "steps": 9}


def arrays(step):
    rng = np.random.default_rng(step)
    params = {"tower": {"kernel": jnp.asarray(rng.standard_normal((8, 16)), jnp.float32)}, "bias": jnp.ones(16) * step}
    return params, {"momentum": jnp.asarray(rng.standard_normal((8, 16)), jnp.bfloat16), "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the steps 100 and 200."""
    directory = tmp_path_factory.mktemp("damage") / "run" / "checkpoints"
    checkpoints = Checkpoints(directory)
    for step in (100, 200):
        params, optimizer = arrays(step)
        config = CONFIG | {"steps": step}
        checkpoints.save(step, params=params, optimizer=optimizer, data={"index": step}, config=config)
    checkpoints.close()
    return directory


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def restore(directory):
    checkpoints = Checkpoints(directory)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays(0))
    try:
        return checkpoints.restore_newest(params=like[0], optimizer=like[1])
    finally:
        checkpoints.close()


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def check_readers(directory, step):
    """Read the params of a step in every way: the saved values, or an error that names the good step."""
    params, _ = arrays(step)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    folder, good = directory / str(step), directory / "100"

    def stream():
        stored = StoredParams(folder / "params")
        return {"tower": {"kernel": stored.read("tower/kernel")}, "bias": stored.read("bias")}

    readers = (
        lambda: load_params(folder),
        lambda: warm_start(folder, like)[0],
        stream,
        lambda: load_params(folder, dtype="bfloat16"),
    )
    for reader in readers:
        found, message = params, None
        try:
            found = reader()
        except UserError as error:
            message = str(error)
        assert message is None or ("damaged" in message and str(good) in message), message
        assert_same(found, jax.tree.map(lambda x, y: x.astype(y.dtype), params, found))


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_random_damage_is_found_or_harmless(copy, seed):
    rng = random.Random(f"{SEED}-{seed}")
    files = sorted(path for path in (copy / "200").rglob("*") if path.is_file() and path.stat().st_size)
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    kind = rng.choice(("bit", "bit", "truncate", "empty", "delete", "zeros"))
    at = rng.randrange(len(data))
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        data[at : at + 16] = bytes(len(data[at : at + 16]))
    elif kind in ("truncate", "empty"):
        del data[0 if kind == "empty" else at :]
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(data)
    check_readers(copy, 200)
    restored = restore(copy)
    assert restored is not None
    params, optimizer = arrays(restored.step)
    assert_same(restored.params, params)
    assert_same(restored.optimizer, optimizer)
    assert restored.data == [{"index": restored.step}]
    found = newest_config(epath.Path(copy))
    assert found is not None
    assert found[1]["steps"] == found[0]


@pytest.mark.parametrize("item", ["params", "optimizer", "data", "config", "fingerprints"])
def test_an_item_of_another_step_is_refused(copy, item):
    shutil.rmtree(copy / "200" / item)
    shutil.copytree(copy / "100" / item, copy / "200" / item)
    check_readers(copy, 200)
    restored = restore(copy)
    assert restored is not None
    assert restored.step == 100
    assert "checkpoint 200 cannot be read" in restored.warnings[0]


@pytest.mark.parametrize("item", ["params", "optimizer"])
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_metadata_that_is_missing_or_empty_goes_back_one_step(copy, item, damage):
    metadata = copy / "200" / item / "_METADATA"
    metadata.unlink()
    if damage == "empty":
        metadata.write_bytes(b"")
    restored = restore(copy)
    assert restored is not None
    assert restored.step == 100


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"step": 200}', b"\xff"])
def test_a_damaged_record_goes_back_one_step(copy, content):
    record = copy / "200" / "fingerprints"
    if content is None:
        shutil.rmtree(record)
    else:
        (record / "metadata").write_bytes(content)
    with pytest.raises(DamagedError):
        read_record(epath.Path(copy / "200"))
    with pytest.raises(UserError, match=r"Checkpoint 200 in .* is damaged .*Use .*checkpoints/100\."):
        load_params(copy / "200")
    restored = restore(copy)
    assert restored is not None
    assert restored.step == 100


def test_without_a_good_step_the_error_says_so(copy):
    for step in ("100", "200"):
        (copy / step / "params" / "_METADATA").unlink()
    with pytest.raises(UserError, match="No other step of this run is good"):
        load_params(copy / "200")


def test_a_changed_config_is_refused(copy):
    file = copy / "200" / "config" / "metadata"
    file.write_text(file.read_text().replace("8", "9"))
    with pytest.raises(DamagedError, match="config is damaged"):
        step_config(epath.Path(copy / "200"))
    with pytest.raises(DamagedError, match="config is damaged"):
        find_config(copy / "200")
    file.unlink()
    with pytest.raises(DamagedError, match="config is missing"):
        step_config(epath.Path(copy / "200"))


@pytest.mark.parametrize("streamed", [False, True])
def test_damage_of_a_model_directory_is_found(tmp_path, streamed):
    kernel = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)
    params = {"tower": {"kernel": kernel}, "bias": np.ones(16, np.float16)}
    if streamed:
        stacked = LazyParameter(kernel.shape, kernel.dtype, True, lambda i: kernel[i])
        bias = LazyParameter((16,), np.dtype(np.float16), False, lambda i: params["bias"])
        write_params(epath.Path(tmp_path / "params"), {"tower/kernel": stacked, "bias": bias})
    else:
        save_params(tmp_path, params)
    assert_same(load_params(tmp_path), params)
    record = tmp_path / "fingerprints" / "metadata"
    values = json.loads(record.read_text())
    values["['params']['bias']"][1] ^= 1
    values["sha256"] = digest({name: value for name, value in values.items() if name != "sha256"})
    record.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"is damaged: array \['params'\]\['bias'\] differs .* Copy or import it again"):
        load_params(tmp_path)
    if not streamed:
        save_params(tmp_path, params)
        assert_same(load_params(tmp_path), params)
