"""Read a prepared set, the ArrayRecord shards of a TFDS folder, by index."""

import functools
import re
from pathlib import Path

from emu_jax.data.document import Document
from emu_jax.data.loader.reading import Records, damaged_record
from emu_jax.data.records import from_record
from emu_jax.errors import UserError
from emu_jax.io.files import read_json
from emu_jax.io.local_copy import local_copy

_SHARD = re.compile(r"-(?P<split>\w+)\.array_record-(?P<index>\d{5})-of-(?P<count>\d{5})$")


class PreparedSet:
    """Documents of one split, by index. Pickling is cheap: each process opens the files itself.

    The files of a URL such as gs://BUCKET/FOLDER are copied to this machine first (`local_copy`).

    Raises:
      UserError: the folder is not a prepared set, has no such split, lacks shards, or holds no document.
    """

    def __init__(self, path: str | Path, *, split: str = "train"):
        self.path = local_copy(path)
        self.split = split
        self.shards = _shards(self.path, split)
        self._lengths = _shard_lengths(self.path, split)
        if self._lengths is not None and len(self._lengths) != len(self.shards):
            raise UserError(
                f"{self.path} has {len(self.shards)} shards of {split!r}, but its dataset_info.json lists "
                f"{len(self._lengths)}; prepare it again."
            )
        if len(self) == 0:
            raise UserError(f"The prepared set {self.path} ({split}) holds no documents.")

    def __len__(self) -> int:
        return sum(self._lengths) if self._lengths is not None else len(self._records)

    def __getitem__(self, index: int) -> Document:
        """Return a document. Raises DecodeError for a damaged record, and UserError for a shard that cannot be read."""
        record = self._records[index]
        try:
            return from_record(record)
        except Exception as error:  # protobuf has its own types, and data may end anywhere
            raise damaged_record(error) from None

    @functools.cached_property
    def _records(self) -> Records:
        records = Records(self.shards)
        if self._lengths is not None and len(records) != sum(self._lengths):
            raise UserError(
                f"The shards of {self.path} hold {len(records)} documents, but its dataset_info.json lists "
                f"{sum(self._lengths)}; copy it again or prepare the set again."
            )
        return records

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_records"}


def _shards(path: Path, split: str) -> list[Path]:
    found = {shard: match for shard in path.glob("*.array_record-*") if (match := _SHARD.search(shard.name))}
    if not found:
        raise UserError(f"{path} is not a prepared set (no array_record shards); make one with prepare-data.")
    shards = sorted(shard for shard, match in found.items() if match["split"] == split)
    if not shards:
        splits = sorted({match["split"] for match in found.values()})
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(splits)}.")
    count = int(found[shards[0]]["count"])
    if len(shards) != count:
        raise UserError(
            f"{path} has {len(shards)} of {count} shards of {split!r}; copy the others or prepare the set again."
        )
    return shards


def _shard_lengths(path: Path, split: str) -> list[int] | None:
    info = path / "dataset_info.json"
    if not info.exists():
        return None
    try:
        splits = {s["name"]: s for s in read_json(info).get("splits", [])}
        return [int(n) for n in splits[split]["shardLengths"]] if split in splits else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{info} is damaged ({error!r}); copy it again or prepare the set again.") from None
