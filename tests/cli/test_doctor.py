import pytest

from emu_jax.cli import doctor
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig


def test_a_machine_that_is_well(capsys, tmp_path):
    doctor.main(["--mesh=data:2,fsdp:-1", f"--checkpoints={tmp_path / 'run'}"])
    out = capsys.readouterr().out
    assert "mesh data:2 x fsdp:4 x tensor:1" in out
    assert "GB/s" in out
    assert "MB/s" in out
    assert out.endswith("all well\n")
    assert list((tmp_path / "run").iterdir()) == []


def test_what_is_wrong_is_said_in_words(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="1"):
        doctor.main([f"--checkpoints={tmp_path / 'file' / 'run'}"])
    out = capsys.readouterr().out
    assert "WRONG: this is a TPU machine and jax sees no TPU" in out
    assert "cannot be written" in out
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    assert "3 of 4 workers are missing" in " ".join(doctor.find_problems({}))


def test_the_mesh_as_it_is_typed():
    assert doctor.parse_mesh("fsdp:4,tensor:2") == MeshConfig(1, 4, 2)
    with pytest.raises(UserError, match="data:1,fsdp:-1,tensor:1"):
        doctor.parse_mesh("fdsp:4")
