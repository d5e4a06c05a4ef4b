"""Scores a model, or given predictions, on the public benchmarks and the synthetic world.

    python -m emu_jax evaluate --list
    python -m emu_jax evaluate --checkpoint DIR --task coco_karpathy,vqav2 --data ROOT --output OUT
    python -m emu_jax evaluate --checkpoint DIR --task vizwiz --data ROOT --output OUT --shots 4
    python -m emu_jax evaluate --checkpoint DIR --task okvqa --data ROOT --output OUT --shots 2 --shot-choice text
    python -m emu_jax evaluate --predictions FILE.jsonl --task vqav2 --data ROOT --output OUT
    python -m emu_jax evaluate --compare OUT1 OUT2
    python -m emu_jax evaluate --checkpoint runs/demo --task synthetic --output OUT

ROOT holds a folder per task, and images that tasks share (ROOT/coco); --list shows the files. OUT/TASK/ gets
predictions.jsonl, scores.json, the file that the benchmark's server takes, and report.html. A run that was interrupted
is resumed by the same command. Several processes (JAX_COORDINATOR_ADDRESS, a TPU pod) divide the examples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from emu_jax.cli import synthetic
from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.progress import count_progress
from emu_jax.errors import UserError
from emu_jax.evaluation.catalog import all_tasks, find_task
from emu_jax.evaluation.few_shot import Choice, ShotOptions
from emu_jax.evaluation.image_metrics.networks import ImageNetworks
from emu_jax.evaluation.image_metrics.resize import Resize
from emu_jax.evaluation.judge import Judge
from emu_jax.evaluation.metrics.scores import Score
from emu_jax.evaluation.metrics.vqa import VqaProtocol
from emu_jax.evaluation.results import TaskResult, flat_scores
from emu_jax.evaluation.task import ScoreOptions, Task

_DEFAULT_BATCH = 16


def main(argv: list[str]) -> None:
    """Run the command."""
    a = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if a.list:
        _print_tasks()
    elif a.compare:
        _compare([Path(folder) for folder in a.compare])
    elif a.predictions is not None:
        _score_predictions(a)
    else:
        _evaluate_model(a)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--checkpoint", metavar="DIR", help="model directory, or a run's workdir")
    parser.add_argument("--task", metavar="NAME[,NAME...]", help="see --list")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="holds a folder per task")
    parser.add_argument("--output", type=Path, metavar="OUT", help="gets a folder per task")
    parser.add_argument("--predictions", type=Path, metavar="FILE.jsonl", help="score these, without a model")
    parser.add_argument("--list", action="store_true", help="list the tasks with their files")
    parser.add_argument("--compare", nargs="+", metavar="OUT", help="print the scores of several outputs as one table")
    parser.add_argument("--split", metavar="S", help="default: the first that --list shows")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N examples only")
    parser.add_argument("--max-missing", type=int, default=0, metavar="N", help="examples that may lack an image "
                        "or a prediction; they count in no score (default 0)")  # fmt: skip
    parser.add_argument("--shots", type=int, default=0, metavar="K", help="few-shot examples (default 0)")
    parser.add_argument("--shot-choice", choices=[one.value for one in Choice], default=Choice.RICES.value,
                        help="nearest images (default), random ones, or fixed ones without images")  # fmt: skip
    parser.add_argument("--vqa-protocol", choices=[one.value for one in VqaProtocol],
                        default=VqaProtocol.RELEASE.value, help="code whose VQA accuracy is computed")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=_DEFAULT_BATCH, metavar="N", help="prompts per program")
    parser.add_argument("--seed", type=int, default=0, help="of random examples, noise and synthetic scenes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="to compute in (default: as saved)")
    parser.add_argument("--mesh", metavar="SIZES", help="over this host's devices (default: fsdp:-1)")
    parser.add_argument("--judge-base-url", metavar="URL", help="OpenAI-compatible endpoint that grades MM-Vet")
    parser.add_argument("--judge-model", default="gpt-4-0613", metavar="NAME", help="default: gpt-4-0613")
    images = parser.add_argument_group("tasks that generate images")
    images.add_argument("--sampler", help="pndm, ddim or dpm-solver++ (default: the task's)")
    images.add_argument("--steps", type=int, help="of the sampler (default: the task's)")
    images.add_argument("--guidance-scale", type=float, help="1 is the prompt alone (default: the task's)")
    images.add_argument("--inception", type=Path, metavar="FILE", help="pt_inception-2015-12-05-*.pth, for FID")
    images.add_argument("--fid-reference", type=Path, metavar="FILE.npz", help="statistics to compare with (mu, sigma)")
    images.add_argument("--fid-resize", choices=[one.value for one in Resize], default=Resize.CLEAN.value)
    images.add_argument("--clip", type=Path, metavar="DIR", help="a CLIP in the layout of transformers")
    synthetic.add_arguments(parser)
    return parser


def _evaluate_model(a: Any) -> None:
    names = _names(a)
    tasks = [find_task(name) for name in names if name != synthetic.NAME]
    _require(a, "--checkpoint", a.checkpoint)
    if tasks:
        _require(a, "--data", a.data)
    _require(a, "--output", a.output)
    shots = ShotOptions(a.shots, Choice(a.shot_choice), a.seed)

    from emu_jax.evaluation.api import evaluate
    from emu_jax.training.processes import start_processes

    start_processes()
    emu = _load(a)
    given = {"sampler": a.sampler, "steps": a.steps, "guidance_scale": a.guidance_scale, "seed": a.seed}
    sampling = {name: value for name, value in given.items() if value is not None}
    results = []
    for name in names:
        if name == synthetic.NAME:
            synthetic.run_command(emu, a, a.output / name)
            continue
        with count_progress(name) as progress:
            result = evaluate(
                emu,
                name,
                a.data,
                output=a.output,
                split=a.split,
                limit=a.limit,
                shots=shots,
                max_missing=a.max_missing,
                batch_size=a.batch_size,
                options=_score_options(a),
                sampling=sampling,
                progress=progress,
            )
        if result is not None:
            results.append(result)
            _print_result(result, a.output)
    _print_table(results)


def _score_predictions(a: Any) -> None:
    from emu_jax.evaluation.report import write_task_report
    from emu_jax.evaluation.scoring import Selection, score_file

    names = _names(a)
    if len(names) != 1:
        raise UserError("--predictions are of one task; name one with --task.")
    if a.checkpoint is not None:
        raise UserError("--predictions are scored without a model; leave out --checkpoint.")
    _require(a, "--data", a.data)
    _require(a, "--output", a.output)
    selection = Selection(a.split, a.limit, a.max_missing)
    result = score_file(find_task(names[0]), a.data, a.predictions, selection=selection, options=_score_options(a))
    result.write(a.output / result.task.name)
    write_task_report(result, a.output / result.task.name)
    _print_result(result, a.output)
    _print_table([result])


def _compare(folders: Sequence[Path]) -> None:
    from emu_jax.evaluation.compare import comparison_table

    Console().print(comparison_table(folders))


def _print_tasks() -> None:
    for task in all_tasks():
        print(f"{task.name}: {task.title}\n    splits: {', '.join(task.splits)} (default {task.splits[0]})")
        for path, meaning in task.files.items():
            print(f"    ROOT/{path}: {meaning}")
        print(f"    predictions: {', '.join((*task.key_fields, task.value_field))}; main score {task.headline}")
    print(f"{synthetic.NAME}: the demo's synthetic shapes world; no files")


def _print_result(result: TaskResult, output: Path) -> None:
    if result.scored is None:
        print(f"{result.task.name} ({result.split}): {_unscored(result.task)} {_server_file(result.task, output)}")
    else:
        print(f"{result.task.name}: scores of {len(result.examples)} examples are in {output / result.task.name}")


def _unscored(task: Task) -> str:
    """Return why a task has no scores and what its file is for."""
    if task.name == "mmvet":
        return "give --judge-base-url for scores; its evaluator takes"
    if task.metric is None:
        return "images are laid out for the benchmark's own scorer next to"
    if task.makes_images:
        return "give --inception or --clip for scores; the images are listed in"
    return "the split has no answers here; the server takes"


def _server_file(task: Task, output: Path) -> Path:
    return output / task.name / (task.server_file[0] if task.server_file else "predictions.jsonl")


def _print_table(results: Sequence[TaskResult]) -> None:
    scored = [result for result in results if result.scored is not None]
    if not scored:
        return
    table = Table()
    for title in ("task", "score", "value", "95% interval", "examples"):
        table.add_column(title, justify="left" if title in ("task", "score") else "right")
    for result in scored:
        assert result.scored is not None
        for name, score in flat_scores(result.scored.scores).items():
            table.add_row(result.task.name, name, *_shown(score))
    Console().print(table)


def _shown(score: Score) -> tuple[str, str, str]:
    interval = score.printed_interval
    between = "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
    return f"{score.printed:.2f}", between, str(score.count)


def _load(a: Any) -> Any:
    import jax

    from emu_jax.generation.api import load
    from emu_jax.sharding.mesh import make_mesh, read_mesh

    devices = jax.local_devices()
    mesh = None
    if a.mesh or len(devices) > 1:
        mesh = make_mesh(read_mesh(a.mesh or "fsdp:-1"), devices=devices)
    return load(a.checkpoint, dtype=a.dtype, mesh=mesh)


def _score_options(a: Any) -> ScoreOptions:
    judge = Judge(a.judge_base_url, a.judge_model, a.output / "mmvet") if a.judge_base_url else None
    networks = ImageNetworks(a.inception, a.clip, Resize(a.fid_resize), a.fid_reference)
    return ScoreOptions(VqaProtocol(a.vqa_protocol), judge, networks)


def _names(a: Any) -> list[str]:
    _require(a, "--task", a.task)
    names = [name.strip() for name in a.task.split(",") if name.strip()]
    for name in names:
        if name != synthetic.NAME:
            find_task(name)
    return names


def _require(a: Any, flag: str, value: Any) -> None:
    del a
    if value is None:
        raise UserError(f"{flag} is required (`python -m emu_jax evaluate --help` shows examples).")
