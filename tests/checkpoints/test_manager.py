"""Checkpoints of a run: save, restore, damage, failed writes, warm starts."""

import contextlib
import dataclasses
import datetime
import os
import resource
import shutil
import tempfile
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.checkpoints.manager import Checkpoints
from emu_jax.checkpoints.params import load_params, save_params, warm_start
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh


def trees(seed=0, *, width=8, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    params = {
        "tower": {"kernel": jnp.asarray(rng.standard_normal((width, 16)), dtype), "bias": jnp.ones((16,), dtype)},
        "head": {"kernel": jnp.asarray(rng.standard_normal((16, 4)), dtype)},
    }
    return params, {"opt_state": optax.adam(1e-3).init(params), "step": jnp.int32(seed)}


def structs(tree, *, sharding=None, dtype=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding or x.sharding), tree
    )


def save(checkpoints, step, **options):
    params, optimizer = trees(step)
    checkpoints.save(step, params=params, optimizer=optimizer, data={"index": step}, config={"steps": 9}, **options)


def newest(checkpoints):
    params, optimizer = trees()
    return checkpoints.restore_newest(params=structs(params), optimizer=structs(optimizer))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_all_items_are_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert newest(checkpoints) is None
    save(checkpoints, 7)
    checkpoints.close()
    restored = newest(Checkpoints(tmp_path / "run"))
    params, optimizer = trees(7)
    assert (restored.step, restored.data, restored.warnings) == (7, [{"index": 7}], ())
    assert_same(restored.params, params)
    assert_same(restored.optimizer, optimizer)


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    params = {"kernel": jnp.arange(1 << 20, dtype=jnp.float32)}
    expected = np.array(params["kernel"])
    checkpoints.save(1, params=params, optimizer={"step": jnp.int32(1)}, data=None, config={})
    for _ in range(3):
        params = overwrite(params)
    jax.block_until_ready(params)
    checkpoints.close()
    np.testing.assert_array_equal(load_params(tmp_path / "run" / "1")["kernel"], expected)


def test_restored_onto_another_mesh_and_dtype(tmp_path):
    one, other = make_mesh(MeshConfig(1, 8, 1)), make_mesh(MeshConfig(2, 2, 2))
    params, optimizer = trees(3)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(
        3,
        params=jax.device_put(params, NamedSharding(one, PartitionSpec())),
        optimizer=jax.device_put(optimizer, NamedSharding(one, PartitionSpec())),
        data={},
        config={},
    )
    checkpoints.wait()
    sharded = NamedSharding(other, PartitionSpec(("data", "fsdp")))
    restored = checkpoints.restore(
        3,
        params=structs(params, sharding=sharded, dtype=jnp.bfloat16),
        optimizer=structs(optimizer, sharding=NamedSharding(other, PartitionSpec())),
    )
    kernel = restored.params["head"]["kernel"]
    assert (kernel.sharding, kernel.dtype) == (sharded, jnp.bfloat16)
    np.testing.assert_array_equal(kernel, params["head"]["kernel"].astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"keep": 2, "keep_every_steps": 4, "best_metric": "loss"}, [2, 4, 6, 7]),
        ({"keep": 1, "best_metric": "loss", "keep_best": 2}, [2, 3, 7]),
        ({"keep": 1, "best_metric": "loss", "best_is_lowest": False}, [6, 7]),
    ],
)
def test_steps_are_preserved_by_count_period_and_metric(tmp_path, options, steps):
    checkpoints = Checkpoints(tmp_path / "run", **options)
    for step, loss in enumerate((3.0, 1.0, 2.0, 5.0, 4.0, 8.0, 7.0), start=1):
        save(checkpoints, step, metrics={"loss": loss})
    checkpoints.wait()
    assert checkpoints.steps() == steps


def test_steps_are_preserved_by_time(tmp_path, monkeypatch):
    """One step per hour is never deleted. The clock that Orbax reads is replaced."""
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    class Clock(datetime.datetime):
        minutes = 0

        @classmethod
        def now(cls, tz=None):
            return start + datetime.timedelta(minutes=cls.minutes)

    clock = types.SimpleNamespace(datetime=Clock, timedelta=datetime.timedelta, timezone=datetime.timezone)
    monkeypatch.setattr("orbax.checkpoint.checkpoint_manager.datetime", clock)
    checkpoints = Checkpoints(tmp_path / "run", keep=1, keep_every_hours=1.0)
    for step, Clock.minutes in enumerate((0, 20, 61, 80, 125, 130), start=1):
        save(checkpoints, step)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3, 5, 6]


def test_an_existing_step_is_not_overwritten(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    save(checkpoints, 1)
    checkpoints.save(1, params={"other": jnp.ones(1)}, optimizer={}, data={}, config={})
    checkpoints.wait()
    assert newest(checkpoints).step == 1


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "overwritten": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "one bit": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "deleted": lambda path: path.unlink(),
}


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_a_damaged_newest_step_falls_back_to_the_previous_one(tmp_path, damage, item):
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (1, 2):
        save(checkpoints, step)
    checkpoints.close()
    (index,) = (tmp_path / "run" / "2" / item / "d").iterdir()  # the index of all files
    DAMAGE[damage](index)
    checkpoints = Checkpoints(tmp_path / "run")
    restored = newest(checkpoints)
    assert restored.step == 1
    assert_same(restored.params, trees(1)[0])
    assert "checkpoint 2 cannot be read" in restored.warnings[0]
    save(checkpoints, 2)  # training can save that step again
    checkpoints.wait()
    assert newest(checkpoints).step == 2


@pytest.mark.parametrize("position", [0.2, 0.5, 0.9])
def test_one_flipped_bit_in_a_large_array_is_found(tmp_path, position):
    """The file has no checksum that would fail: random numbers do not compress and are stored unchanged."""
    numbers = np.random.default_rng(0).standard_normal((2, 1 << 18), np.float32)
    params = {"kernel": jnp.asarray(numbers)}
    for step in (1, 2):
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(step, params=params, optimizer={"step": jnp.int32(step)}, data={}, config={})
        checkpoints.close()
    files = (path for path in (tmp_path / "run" / "2" / "params").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[int(position * len(content))] ^= 0x10
    largest.write_bytes(content)
    optimizer = structs({"step": jnp.int32(0)})
    restored = Checkpoints(tmp_path / "run").restore_newest(params=structs(params), optimizer=optimizer)
    assert restored.step == 1
    np.testing.assert_array_equal(restored.params["kernel"], numbers)


def test_an_error_is_raised_if_no_step_can_be_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    save(checkpoints, 1)
    checkpoints.close()
    shutil.rmtree(tmp_path / "run" / "1" / "params" / "d")
    shutil.rmtree(tmp_path / "run" / "1" / "params" / "ocdbt.process_0")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        newest(Checkpoints(tmp_path / "run"))


def test_a_checkpoint_of_another_model_is_not_reported_as_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    save(checkpoints, 1)
    checkpoints.wait()
    params, optimizer = trees(width=32)
    with pytest.raises(UserError, match=r"tower/kernel is \[8, 16\], expected \[32, 16\]"):
        checkpoints.restore_newest(params=structs(params), optimizer=structs(optimizer))
    assert checkpoints.steps() == [1]


def test_the_error_on_a_full_disk_names_the_last_good_step(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    save(checkpoints, 1)
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal(1 << 20), jnp.float32)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))  # no file larger than half a megabyte
    try:
        with pytest.raises(UserError, match="the last good checkpoint is step 1"):
            _save_and_wait(checkpoints, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest(Checkpoints(tmp_path / "run")).step == 1


def _save_and_wait(checkpoints, params):
    checkpoints.save(2, params=params, optimizer={"step": jnp.int32(2)}, data={}, config={})
    checkpoints.wait()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "run")


@pytest.fixture
def open_folder():
    """A folder that every user may open; those of pytest are for one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody():
    """Permissions do not apply to root, so the process runs as nobody in the block."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_directory_without_permissions(open_folder):
    locked = open_folder / "locked"
    locked.mkdir(mode=0o555)
    with as_nobody(), pytest.raises(UserError, match=r"locked cannot be written \(Permission denied\)"):
        Checkpoints(locked)


def test_permissions_lost_during_a_run_are_reported_at_once_with_the_last_good_step(open_folder):
    run = open_folder / "run"
    checkpoints = Checkpoints(run)
    save(checkpoints, 1)
    checkpoints.wait()
    run.chmod(0o555)
    reason = r"Permission denied.*the last good checkpoint is step 1. Free disk space or fix"
    with as_nobody(), pytest.raises(UserError, match=reason):
        _save_and_wait(checkpoints, trees(2)[0])
    run.chmod(0o755)
    assert newest(Checkpoints(run)).step == 1


def test_parameters_without_a_run(tmp_path):
    params, _ = trees(5)
    save_params(tmp_path / "model", params)
    save_params(tmp_path / "model", params)  # replaces the first
    assert_same(load_params(tmp_path / "model"), params)
    mesh = make_mesh(MeshConfig(1, 8, 1))
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec("fsdp")), params)
    loaded = load_params(tmp_path / "model", shardings=shardings, dtype=jnp.bfloat16)
    assert loaded["tower"]["kernel"].sharding == shardings["tower"]["kernel"]
    assert loaded["tower"]["kernel"].dtype == jnp.bfloat16
    with pytest.raises(UserError, match="has no params/ folder"):
        load_params(tmp_path)


def test_a_warm_start_reports_what_was_loaded(tmp_path):
    source, _ = trees(5)
    save_params(tmp_path / "model", source)
    target, _ = trees(0)
    target["tower"]["bias"] = jnp.zeros((17,))
    target["new"] = {"kernel": jnp.zeros((2,))}
    del target["head"]
    loaded, report = warm_start(tmp_path / "model", target)
    assert_same(loaded, {"tower": {"kernel": source["tower"]["kernel"]}})
    assert dataclasses.asdict(report) == {
        "loaded": ("tower/kernel",),
        "missing": ("new/kernel",),
        "unused": ("head/kernel",),
        "other_shape": ("tower/bias: (16,), expected (17,)",),
        "grown": (),
    }
    assert "new/kernel" in report.summary()
    with pytest.raises(UserError, match="None of the 3 parameters"):
        warm_start(tmp_path / "model", {"new": {"kernel": jnp.zeros((2,))}})


def test_a_warm_start_reads_directly_into_shards(tmp_path):
    """Orbax reads each array in the sharding of the run, so that no device gets more than its shard."""
    source, _ = trees(5)
    save_params(tmp_path / "model", source)
    mesh = make_mesh(MeshConfig(1, 8, 1))
    sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
    own = jax.device_put(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), source), sharded)
    loaded, _ = warm_start(tmp_path / "model", own)
    for array in jax.tree.leaves(loaded):
        assert (array.sharding, array.dtype) == (sharded, jnp.bfloat16)
        assert {shard.data.size * 8 for shard in array.addressable_shards} == {array.size}
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), source))


def test_an_incomplete_step_is_ignored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (1, 2):
        save(checkpoints, step)
    checkpoints.close()
    run = Path(tmp_path / "run")
    (run / "2").rename(run / "2.orbax-checkpoint-tmp-5")
    assert newest(Checkpoints(run)).step == 1
