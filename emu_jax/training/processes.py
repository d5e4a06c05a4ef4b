"""Connect the processes of a run, one per host."""

import importlib.util
import os
import sys
import threading

import jax

from emu_jax.errors import UserError
from emu_jax.hardware import tpu_attached
from emu_jax.waiting import watch_waits


def start_processes(*, timeout: int = 300) -> None:
    """Connect this process to the others of the run, if there are others. Call it before any use of a device.

    Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or let JAX detect them: on a TPU machine (one
    host, a worker of a pod, slices of a queued resource or of a GKE cluster) or in a Slurm step. Otherwise the process
    is the only one.

    Args:
      timeout: seconds to wait for the other processes; after that, this process exits with code 2.

    Raises:
      UserError: JAX cannot connect the processes with the settings of the cluster.
    """
    count = index = None
    if "JAX_NUM_PROCESSES" in os.environ:
        if "JAX_COORDINATOR_ADDRESS" not in os.environ:
            raise UserError("Set JAX_COORDINATOR_ADDRESS to HOST:PORT of process 0, or unset JAX_NUM_PROCESSES.")
        count = _integer("JAX_NUM_PROCESSES", low=1)
        index = _integer("JAX_PROCESS_ID", high=count - 1)
    elif not _in_cluster():
        return
    timer = threading.Timer(timeout, _exit, (timeout,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(num_processes=count, process_id=index, initialization_timeout=timeout + 60)
    except (RuntimeError, ValueError, KeyError, IndexError, AssertionError) as error:
        raise UserError(f"The processes of the run cannot connect: {error}") from error
    finally:
        timer.cancel()
    watch_waits()


def _exit(timeout: float) -> None:
    """Exit with one clear line; JAX would abort with a C++ stack trace."""
    sys.stderr.write(
        f"error: not all processes of the run connected within {timeout:g} s. Start the same command on every worker, "
        "and check that every worker can reach the first one (JAX_COORDINATOR_ADDRESS, or its port 8482).\n"
    )
    sys.stderr.flush()
    os._exit(2)


def _in_cluster() -> bool:
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    if tpu_attached():
        return importlib.util.find_spec("libtpu") is not None
    return "SLURM_STEP_NUM_TASKS" in os.environ and _integer("SLURM_STEP_NUM_TASKS", low=1) > 1


def _integer(variable: str, *, low: int = 0, high: int = 10**6) -> int:
    """Return the value of an environment variable; raise UserError if it is not an integer in the range."""
    text = os.environ.get(variable)
    if text is None:
        raise UserError(f"Set {variable}, an integer from {low} to {high}, or unset the other variables of the run.")
    if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"{variable} must be an integer from {low} to {high}, not {text!r}.")
    return int(text)
