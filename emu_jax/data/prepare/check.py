"""Read the input of a preparation without writing anything, and report every bad record."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from emu_jax.data.document import Document, Text
from emu_jax.data.sources import SOURCES, ReadOptions
from emu_jax.data.sources.source import Rejected


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """Counts of a dry run.

    Attributes:
      documents: records that are usable.
      media: images and videos in them.
      text_only: usable records without images and videos.
      bad: records that are not usable, and images that usable records lost.
    """

    documents: int
    media: int
    text_only: int
    bad: int


def check_inputs(
    inputs: Sequence[Path], *, source: str, options: ReadOptions, report: Callable[[Rejected], None]
) -> CheckResult:
    """Read every record of `inputs`, with the files that it names; nothing is decoded or written.

    Args:
      inputs: files of the data set.
      source: name of its layout.
      options: as for the preparation.
      report: called with each bad record.

    Raises:
      UserError: a file does not have this layout at all.
    """
    documents = media = text_only = bad = 0
    for path in inputs:
        for found in SOURCES[source].read(path, options):
            if isinstance(found, Document):
                count = sum(not isinstance(segment, Text) for segment in found.segments)
                documents, media, text_only = documents + 1, media + count, text_only + (count == 0)
            else:
                bad += 1
                report(found)
    return CheckResult(documents, media, text_only, bad)
