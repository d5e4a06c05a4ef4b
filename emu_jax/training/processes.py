"""The processes of a run: who the others are, and how this one joins them."""

import importlib.util
import os
import sys
import threading

import jax

from emu_jax.errors import UserError
from emu_jax.hardware import tpu_attached


def start_processes(*, timeout: int = 300) -> None:
    """Joins the other processes of the run where there are any; to be called before anything asks for a device.

    By hand: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID. A TPU machine (one host, a pod's worker, slices
    of a queued resource or a GKE cluster) and a Slurm step tell jax by themselves. Elsewhere the process is alone.

    Args:
      timeout: seconds to wait for the others.

    Raises:
      UserError: the cluster says nothing that jax understands. Where not all come, the process ends with 2.
    """
    count = own = None
    if "JAX_COORDINATOR_ADDRESS" in os.environ and "JAX_NUM_PROCESSES" in os.environ:
        count, own = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    elif not _cluster_knows():
        return
    watch = threading.Timer(timeout, _give_up, (timeout,))
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(num_processes=count, process_id=own, initialization_timeout=timeout + 60)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The processes of the run do not come together: {error}") from error
    finally:
        watch.cancel()


def _give_up(timeout: float) -> None:
    """Ends the process with a line a person can use; jax itself would abort with a stack of C++ frames."""
    sys.stderr.write(
        f"error: not all processes of the run came within {timeout:g} s. Give the same command on every worker, and "
        "see that all reach the first one (JAX_COORDINATOR_ADDRESS, or its port 8482).\n"
    )
    sys.stderr.flush()
    os._exit(2)


def _cluster_knows() -> bool:
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    if tpu_attached():
        return importlib.util.find_spec("libtpu") is not None
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
