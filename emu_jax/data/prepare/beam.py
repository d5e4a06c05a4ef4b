"""Run `prepare` on Apache Beam: the same part files and the same prepared set, made by the workers of any runner.

Workers access only the input and the output folder, so every worker must see both under the same path.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_jax.data.prepare.cleaning import PrepareConfig
from emu_jax.data.prepare.part_files import Task, make_part, read_digests
from emu_jax.data.prepare.selection import select_records
from emu_jax.errors import UserError

if TYPE_CHECKING:
    import apache_beam


@dataclasses.dataclass(frozen=True)
class Runner:
    """A Beam runner.

    Attributes:
      name: Beam's name of it: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...
      options: as on the command line of a Beam program: `--region=...`, `--direct_num_workers=8`.
    """

    name: str
    options: tuple[str, ...] = ()

    def __post_init__(self):
        beam = _import_beam()
        try:
            beam.runners.create_runner(self.name)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"--runner={self.name} is not a runner of Apache Beam ({error}).") from None

    def pipeline_options(self) -> "apache_beam.options.pipeline_options.PipelineOptions":
        """Return the options as Beam's own type."""
        return _import_beam().options.pipeline_options.PipelineOptions(list(self.options))


def make_parts(tasks: Sequence[Task], *, config: PrepareConfig, runner: Runner) -> None:
    """Make every part on the runner's workers.

    Files of another layout are skipped here; making their part again in this process raises the error.
    """
    beam = _import_beam()
    with beam.Pipeline(runner=runner.name, options=runner.pipeline_options()) as pipeline:
        # Reshuffle distributes the files; without it, one worker would process all of them.
        _ = pipeline | beam.Create(list(tasks)) | beam.Reshuffle() | beam.Map(_make_part, config=config)


def _make_part(task: Task, *, config: PrepareConfig) -> None:
    try:
        make_part(task, config=config)
    except UserError:
        return


def examples(parts: Sequence[tuple[Path, int]]) -> "apache_beam.PTransform":
    """Return the transform that yields the numbered examples of all parts without duplicates.

    Of documents with the same content, the first is selected. Workers exchange digests, never pixels.

    Args:
      parts: (stem, number of the first record) of each part.
    """
    beam = _import_beam()

    def transform(pipeline: Any) -> Any:
        stems = pipeline | beam.Create([(str(stem), first) for stem, first in parts])
        selected = (
            stems
            | "Digests" >> beam.FlatMap(_numbered_digests)
            | "First" >> beam.CombinePerKey(min)
            | "Location" >> beam.Map(lambda found: (found[1][1], found[1][2]))
        )
        together = {"first": stems, "selected": selected} | beam.CoGroupByKey()
        return together | beam.Reshuffle() | "Select" >> beam.FlatMap(_select)

    return beam.ptransform_fn(transform)()


def _numbered_digests(part: tuple[str, int]) -> Iterator[tuple[bytes, tuple[int, str, int]]]:
    stem, first = part
    for index, digest in enumerate(read_digests(Path(stem))):
        yield digest, (first + index, stem, index)


def _select(part: tuple[str, dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    stem, found = part
    (first,) = found["first"]
    yield from select_records(Path(stem), list(found["selected"]), first=first)


def _import_beam() -> Any:
    try:
        import apache_beam
    except ImportError:
        raise UserError(
            "--runner requires Apache Beam, which is not installed: pip install -c constraints.txt -e '.[beam]'."
        ) from None
    return apache_beam
