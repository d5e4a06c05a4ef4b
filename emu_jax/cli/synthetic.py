"""The task `synthetic` of `evaluate`: scenes of the synthetic shapes world, next to an untrained model and chance."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAME = "synthetic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the synthetic task."""
    group = parser.add_argument_group(NAME, "nothing to download: scenes are drawn for the evaluation")
    group.add_argument("--num-scenes", type=int, default=256, help="per score of texts (default 256)")
    group.add_argument("--num-images", type=int, help="scenes per score of generated images (default: half as many)")
    group.add_argument("--num-frames", type=int, default=4, help="frames of a video, as in training (default 4)")
    group.add_argument("--num-beams", type=int, default=1, help="of the answers (default 1)")


def check_arguments(arguments: Any) -> None:
    """Raise UserError for options that the task cannot use."""
    _settings(arguments)


def run_command(emu: Any, arguments: Any, folder: Path) -> None:
    """Run the task, print its table, and write scores.json and report.html to `folder`."""
    from rich.console import Console

    from emu_jax.cli.progress import count_progress
    from emu_jax.demo.report import write_evaluation_report
    from emu_jax.demo.runner import evaluate_pipeline, score_table
    from emu_jax.io.files import write_json

    sampling = {
        "sampler": arguments.sampler or "dpm-solver++",
        "steps": arguments.steps or 20,
        "guidance_scale": 2.0 if arguments.guidance_scale is None else arguments.guidance_scale,
        "seed": arguments.seed,
    }
    with count_progress("tasks") as progress:
        evaluation = evaluate_pipeline(
            emu,
            _settings(arguments),
            sampling=sampling,
            progress=lambda name, done, total: progress(done, total),
        )
    Console().print(score_table(evaluation))
    write_json(folder / "scores.json", evaluation.metrics(), indent=2)
    lead = f"{arguments.checkpoint}, on {arguments.num_scenes} scenes per score."
    title = f"Evaluation of {Path(arguments.checkpoint).name}"
    write_evaluation_report(folder / "report.html", evaluation, title=title, lead=lead)
    print(f"{NAME}: scores and report are in {folder}")


def _settings(arguments: Any) -> Any:
    from emu_jax.demo.examples import Settings

    scenes, images = arguments.num_scenes, arguments.num_images
    images = max(1, scenes // 2) if images is None else images
    return Settings(scenes, images, arguments.seed, num_frames=arguments.num_frames, num_beams=arguments.num_beams)
