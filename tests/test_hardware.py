"""Facts about accelerators, and how the current one is recognized."""

from __future__ import annotations

import jax
import pytest

from emu_jax.hardware import CHIPS, generation, on_tpu, peak_flops, tpu_attached
from emu_jax.sharding.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("TPU7x", "v7x"),
        ("NVIDIA H100 80GB HBM3", None),
        ("cpu", None),
    ],
)
def test_generation_of_a_device_kind(device_kind: str, name: str | None) -> None:
    assert generation(device_kind) == name


def test_every_generation_has_chip_facts() -> None:
    assert all(generation(f"TPU {name}") == name for name in CHIPS)


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU7x", 1153.5e12), ("NVIDIA H100 80GB HBM3", 989e12)],
)
def test_peak_of_a_device_kind(device_kind: str, peak: float) -> None:
    assert peak_flops(device_kind) == peak


def test_peak_of_an_unknown_device_is_none() -> None:
    assert peak_flops("cpu") is None


def test_cpu_is_not_a_tpu_with_and_without_a_mesh() -> None:
    assert not on_tpu()
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert not on_tpu()


def test_attached_tpu_chips_are_found_by_their_device_files(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"/dev/accel[0-9]*": [], "/dev/vfio/[0-9]*": ["/dev/vfio/0"], "/dev/nvidia[0-9]*": []}
    monkeypatch.setattr("glob.glob", found.__getitem__)
    monkeypatch.delenv("TPU_WORKER_ID", raising=False)
    assert tpu_attached()
    found["/dev/nvidia[0-9]*"] = ["/dev/nvidia0"]  # a GPU passed to a virtual machine
    assert not tpu_attached()
    found["/dev/accel[0-9]*"] = ["/dev/accel0"]
    assert tpu_attached()
