"""What each process keeps for itself in a checkpoint: the state of its share of the data, as JSON."""

import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath


class HostStateHandler(ocp.CheckpointHandler):
    """One file a process, named by its index and the number of processes."""

    def save(self, directory: epath.Path, args: "HostStateSave") -> None:
        """Writes this process's state."""
        (directory / _file_name()).write_text(json.dumps(args.state))

    def restore(self, directory: epath.Path, args: "HostStateRestore | None" = None) -> list[Any]:
        """The states of all processes that saved, in their order."""
        paths = sorted(
            directory.glob("process_*-of-*.json"), key=lambda path: int(path.name.split("_")[1].split("-")[0])
        )
        count = int(paths[0].stem.rsplit("-", 1)[1]) if paths else 0
        if len(paths) != count or not paths:
            raise FileNotFoundError(f"{directory} holds the data state of {len(paths)} of {count} processes")
        return [json.loads(path.read_text()) for path in paths]

    def finalize(self, directory: epath.Path) -> None:
        """Nothing is left to do once the files are there."""

    def metadata(self, directory: epath.Path) -> None:
        """The files say all there is."""

    def close(self) -> None:
        """Holds nothing open."""

    @classmethod
    def typestr(cls) -> str:
        """The name under which Orbax notes who wrote the item."""
        return f"{cls.__module__}.{cls.__qualname__}"


@ocp.args.register_with_handler(HostStateHandler, for_save=True)
@dataclasses.dataclass
class HostStateSave(ocp.args.CheckpointArgs):
    """Saves `state`, anything that JSON can hold."""

    state: Any


@ocp.args.register_with_handler(HostStateHandler, for_restore=True)
@dataclasses.dataclass
class HostStateRestore(ocp.args.CheckpointArgs):
    """Restores what all processes saved."""


def _file_name() -> str:
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"
