"""Scores a model on what it can do: captions, questions, pictures from text, in context, films.

    python -m emu_jax evaluate --checkpoint runs/demo --task drawn-world
    python -m emu_jax evaluate --checkpoint runs/demo --task drawn-world --num-scenes 64 \\
        --output runs/demo/scores.json --report runs/demo/scores.html

The drawn world is the demo's: its scenes are drawn for the evaluation, so there is nothing to download. Each score
stands beside an untrained model of the same sizes, and chance. CHECKPOINT is a model directory or a training run's
workdir; without a visual_decoder/ in it, pictures are judged by their embeddings alone. --output takes the scores as
JSON, --report a page to look at.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import emu_jax
from emu_jax.cli.arguments import ArgumentParser
from emu_jax.demo.examples import Settings
from emu_jax.demo.models import DiffusionImageGenerator, Models, untrained_like
from emu_jax.demo.report import write_evaluation_report
from emu_jax.demo.runner import Evaluation, evaluate, score_table, write_json
from emu_jax.generation.pipeline import EmuPipeline


def main(argv: list[str]) -> None:
    """Runs the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="model directory, or a run's workdir")
    parser.add_argument("--task", choices=["drawn-world"], default="drawn-world", help="default: drawn-world")
    parser.add_argument("--num-scenes", type=int, default=256, help="of each score of texts (default 256)")
    parser.add_argument("--num-pictures", type=int, help="of each score of pictures (default: half as many)")
    parser.add_argument("--num-frames", type=int, default=4, help="frames of a film, as in training (default 4)")
    parser.add_argument("--num-beams", type=int, default=1, help="of the answers (default 1)")
    parser.add_argument("--sampler", default="dpm-solver++", help="pndm, ddim or dpm-solver++ (default)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default 20)")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="1 is the prompt alone (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, the noise and the untrained model")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the scores, for programs")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="scores and samples, for people")
    a = parser.parse_args(argv)

    pictures = max(1, a.num_scenes // 2) if a.num_images is None else a.num_images
    settings = Settings(a.num_scenes, pictures, a.seed, num_frames=a.num_frames, num_beams=a.num_beams)
    how = {"sampler": a.sampler, "steps": a.steps, "guidance_scale": a.guidance_scale, "seed": a.seed}
    emu = emu_jax.load(a.checkpoint)
    settings = dataclasses.replace(settings, image_size=emu.config.vision.image_size)
    evaluation = run(emu, settings, how)

    Console().print(score_table(evaluation))
    if a.output is not None:
        write_json(a.output, evaluation.metrics())
        print(f"the scores are in {a.output}")
    if a.report is not None:
        lead = f"{a.checkpoint}, on {a.num_scenes} scenes of the drawn world a score."
        write_evaluation_report(a.report, evaluation, title=f"Evaluation of {Path(a.checkpoint).name}", lead=lead)
        print(f"the page is {a.report}")


def run(emu: EmuPipeline, settings: Settings, how: dict[str, object]) -> Evaluation:
    """The evaluation beside an untrained model of the same sizes, with a bar on stderr."""
    settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, settings.num_scenes))
    how = {"batch_size": min(DiffusionImageGenerator.batch_size, settings.num_images)} | how
    both = [emu, untrained_like(emu, seed=settings.seed)]
    models, untrained = (
        Models(one, DiffusionImageGenerator(one, **how) if one.has_visual_decoder else None)  # type: ignore[arg-type]
        for one in both
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("evaluating", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        return evaluate(models, settings=settings, untrained=untrained, progress=progress)
