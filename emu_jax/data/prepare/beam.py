"""Apache Beam as the engine of `prepare`: the same parts and the same set, made by the workers of any of its runners.

Nothing but the folders of the input and of the output is shared with the workers, so these must lie where each of them
sees them under the same path.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_jax.data.prepare.cleaning import PrepareConfig
from emu_jax.data.prepare.parts import Task, digests, make_part, pick
from emu_jax.errors import UserError

if TYPE_CHECKING:
    import apache_beam


@dataclasses.dataclass(frozen=True)
class Runner:
    """Attributes:
    name: as Beam has it: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...
    options: as on the command line of a Beam program: `--region=...`, `--direct_num_workers=8`.
    """

    name: str
    options: tuple[str, ...] = ()

    def __post_init__(self):
        beam = _beam()
        try:
            beam.runners.create_runner(self.name)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"--runner={self.name} is no runner of Apache Beam ({error}).") from None

    def pipeline_options(self) -> "apache_beam.options.pipeline_options.PipelineOptions":
        """The options in Beam's own form."""
        return _beam().options.pipeline_options.PipelineOptions(list(self.options))


def make_parts(tasks: Sequence[Task], *, config: PrepareConfig, runner: Runner) -> None:
    """Makes every part on the runner's workers, but for files that are not of the layout: asked again, they say so."""
    beam = _beam()
    with beam.Pipeline(runner=runner.name, options=runner.pipeline_options()) as pipeline:
        # Reshuffle: otherwise one worker would keep all the files.
        _ = pipeline | beam.Create(list(tasks)) | beam.Reshuffle() | beam.Map(_make, config=config)


def _make(task: Task, *, config: PrepareConfig) -> None:
    try:
        make_part(task, config=config)
    except UserError:
        return


def examples(parts: Sequence[tuple[Path, int]]) -> "apache_beam.PTransform":
    """The transform that gives the numbered examples of parts at (stem, number of the first), duplicates left out.

    Of documents of the same content the first stays. Digests alone travel between workers, never pixels.
    """
    beam = _beam()

    def transform(pipeline: Any) -> Any:
        stems = pipeline | beam.Create([(str(stem), first) for stem, first in parts])
        chosen = (
            stems
            | "Digests" >> beam.FlatMap(_digests)
            | "First" >> beam.CombinePerKey(min)
            | "Place" >> beam.Map(lambda found: (found[1][1], found[1][2]))
        )
        together = {"first": stems, "chosen": chosen} | beam.CoGroupByKey()
        return together | beam.Reshuffle() | "Pick" >> beam.FlatMap(_pick)

    return beam.ptransform_fn(transform)()


def _digests(part: tuple[str, int]) -> Iterator[tuple[bytes, tuple[int, str, int]]]:
    stem, first = part
    for number, digest in enumerate(digests(Path(stem))):
        yield digest, (first + number, stem, number)


def _pick(part: tuple[str, dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    stem, found = part
    (first,) = found["first"]
    yield from pick(Path(stem), list(found["chosen"]), first=first)


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError:
        raise UserError(
            "--runner wants Apache Beam, which is not installed: pip install -c constraints.txt -e '.[beam]'."
        ) from None
    return apache_beam
