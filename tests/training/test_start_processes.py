"""Environment variables of several processes: a wrong one is one line."""

from __future__ import annotations

import pytest

from emu_jax.errors import UserError
from emu_jax.training.processes import start_processes

ADDRESS = {"JAX_COORDINATOR_ADDRESS": "localhost:1"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (ADDRESS | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be an integer from 1 to .* not 'two'"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES must be"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "2"}, "Set JAX_PROCESS_ID, an integer from 0 to 1"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID must be .* from 0 to 1"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "Set JAX_COORDINATOR_ADDRESS"),
        ({"JAX_PLATFORMS": "", "SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS must be an integer"),
    ],
)
def test_wrong_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        start_processes()
