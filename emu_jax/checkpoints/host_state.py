"""Save the states of each process's data iterator and metrics log in a checkpoint, as JSON with a checksum."""

import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from emu_jax.checkpoints.step import DamagedError, digest


@dataclasses.dataclass(frozen=True)
class HostState:
    """The state of one process.

    Attributes:
      state: of the data iterator.
      log: of the metrics log, the same on every process; None in older checkpoints.
    """

    state: Any
    log: Any = None


class HostStateHandler(ocp.CheckpointHandler):
    """One file per process, named by its index and the number of processes."""

    def save(self, directory: epath.Path, args: "HostStateSave") -> None:
        """Write the state of this process."""
        value = {"identity": args.identity, "state": args.state, "log": args.log}
        (directory / _file_name()).write_text(json.dumps(value | {"sha256": digest(value)}))

    def restore(self, directory: epath.Path, args: "HostStateRestore | None" = None) -> list[HostState]:
        """Return the states of all processes that saved, in order of their index.

        Raises:
          FileNotFoundError: the file of a process is missing.
          DamagedError: a state is damaged, or of another step.
        """
        paths = sorted(
            directory.glob("process_*-of-*.json"), key=lambda path: int(path.name.split("_")[1].split("-")[0])
        )
        count = int(paths[0].stem.rsplit("-", 1)[1]) if paths else 0
        if len(paths) != count or not paths:
            raise FileNotFoundError(f"{directory} has the data state of {len(paths)} of {count} processes")
        identity = None if args is None else args.identity
        return [_state(json.loads(path.read_text()), identity, source=path.name) for path in paths]

    def finalize(self, directory: epath.Path) -> None:
        """Do nothing: the files are complete."""

    def metadata(self, directory: epath.Path) -> None:
        """Return nothing: there is no metadata."""

    def close(self) -> None:
        """Do nothing: no resource is open."""

    @classmethod
    def typestr(cls) -> str:
        """Return the handler's name in the metadata of the checkpoint."""
        return f"{cls.__module__}.{cls.__qualname__}"


@ocp.args.register_with_handler(HostStateHandler, for_save=True)
@dataclasses.dataclass
class HostStateSave(ocp.args.CheckpointArgs):
    """Save `state` and `log`, any JSON values, with the identity of the step's record."""

    state: Any
    identity: str
    log: Any = None


@ocp.args.register_with_handler(HostStateHandler, for_restore=True)
@dataclasses.dataclass
class HostStateRestore(ocp.args.CheckpointArgs):
    """Restore the states of all processes. `identity` is that of the step's record; None for an old checkpoint."""

    identity: str | None = None


def _state(saved: Any, identity: str | None, *, source: str) -> HostState:
    if identity is None:  # saved before data states had checksums
        return HostState(saved)
    fields = {"identity", "state", "sha256"}
    if not isinstance(saved, dict) or saved.keys() - {"log"} != fields:
        raise DamagedError(f"{source} is damaged")
    if saved.pop("sha256") != digest(saved):
        raise DamagedError(f"{source} is damaged")
    if saved["identity"] != identity:
        raise DamagedError(f"{source} is of another step")
    return HostState(saved["state"], saved.get("log"))


def _file_name() -> str:
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"
