"""The task `synthetic` of `evaluate`: scenes of the synthetic shapes world, next to an untrained model and chance."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from emu_jax.demo.examples import Settings
from emu_jax.demo.models import DiffusionImageGenerator, Models, untrained_like
from emu_jax.demo.report import write_evaluation_report
from emu_jax.demo.runner import Evaluation, evaluate, score_table
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.io.files import write_json

NAME = "synthetic"
_DESCRIPTION = "nothing to download: scenes are drawn for the evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the synthetic task."""
    group = parser.add_argument_group("synthetic", _DESCRIPTION)
    group.add_argument("--num-scenes", type=int, default=256, help="per score of texts (default 256)")
    group.add_argument("--num-image-scenes", type=int, help="per score of images (default: half of --num-scenes)")
    group.add_argument("--num-frames", type=int, default=4, help="frames of a video, as in training (default 4)")
    group.add_argument("--num-beams", type=int, default=1, help="of the answers (default 1)")


def run_command(emu: EmuPipeline, arguments: Any, folder: Path) -> None:
    """Run the task, print its table, and write scores.json and report.html to `folder`."""
    images = arguments.num_image_scenes
    settings = Settings(
        arguments.num_scenes,
        max(1, arguments.num_scenes // 2) if images is None else images,
        arguments.seed,
        image_size=emu.config.vision.image_size,
        num_frames=arguments.num_frames,
        num_beams=arguments.num_beams,
    )
    sampling = {
        "sampler": arguments.sampler or "dpm-solver++",
        "steps": arguments.steps or 20,
        "guidance_scale": 2.0 if arguments.guidance_scale is None else arguments.guidance_scale,
        "seed": arguments.seed,
    }
    evaluation = run(emu, settings, sampling)
    Console().print(score_table(evaluation))
    write_json(folder / "scores.json", evaluation.metrics(), indent=2)
    lead = f"{arguments.checkpoint}, on {arguments.num_scenes} scenes per score."
    title = f"Evaluation of {Path(arguments.checkpoint).name}"
    write_evaluation_report(folder / "report.html", evaluation, title=title, lead=lead)
    print(f"{NAME}: scores and report are in {folder}")


def run(emu: EmuPipeline, settings: Settings, sampling: dict[str, object]) -> Evaluation:
    """Evaluate the model and an untrained one of the same sizes, with a progress bar on stderr."""
    settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, settings.num_scenes))
    sampling = {"batch_size": min(DiffusionImageGenerator.batch_size, settings.num_images)} | sampling
    both = [emu, untrained_like(emu, seed=settings.seed)]
    models, untrained = (
        Models(one, DiffusionImageGenerator(one, **sampling) if one.has_visual_decoder else None)  # type: ignore[arg-type]
        for one in both
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("evaluating", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        return evaluate(models, settings=settings, untrained=untrained, progress=progress)
