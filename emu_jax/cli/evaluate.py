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
from pathlib import Path
from typing import Any

from emu_jax.cli import synthetic
from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.imports import heavy_imports
from emu_jax.cli.progress import count_progress
from emu_jax.errors import UserError

_DEFAULT_BATCH = 16


def main(argv: list[str]) -> None:
    """Run the command."""
    a = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if a.list or a.compare:
        with heavy_imports():
            from emu_jax.cli import evaluation_output as output
        if a.list:
            output.print_tasks()
        else:
            output.print_comparison([Path(folder) for folder in a.compare])
    elif a.predictions is not None:
        _score_predictions(a)
    else:
        _evaluate_model(a)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="model directory, or a run's workdir")
    parser.add_argument("--task", metavar="NAME[,NAME...]", help="see --list")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="holds a folder per task")
    parser.add_argument("--output", type=Path, metavar="OUT", help="gets a folder per task")
    parser.add_argument("--predictions", type=Path, metavar="FILE.jsonl", help="score these, without a model")
    parser.add_argument("--list", action="store_true", help="list the tasks with their files")
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="OUT", help="print the scores of several outputs as one table"
    )
    parser.add_argument("--split", metavar="S", help="default: the first that --list shows")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N examples only")
    parser.add_argument("--max-missing", type=int, default=0, metavar="N", help="examples that may lack an image "
                        "or a prediction; they count in no score (default 0)")  # fmt: skip
    parser.add_argument("--shots", type=int, default=0, metavar="K", help="few-shot examples (default 0)")
    parser.add_argument("--shot-choice", choices=("rices", "random", "text"), default="rices",
                        help="nearest images (default), random ones, or fixed ones without images")  # fmt: skip
    parser.add_argument("--vqa-protocol", choices=("release", "official"),
                        default="release", help="code whose VQA accuracy is computed")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=_DEFAULT_BATCH, metavar="N", help="prompts per program")
    parser.add_argument("--seed", type=int, default=0, help="of random examples, noise and synthetic scenes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="to compute in (default: as saved)")
    parser.add_argument("--quantization", choices=("int8",), help="of the kernels (default: in the compute dtype)")
    parser.add_adapter_argument()
    parser.add_argument("--mesh", metavar="SIZES", help="over this host's devices (default: fsdp:-1)")
    parser.add_argument("--judge-base-url", metavar="URL", help="OpenAI-compatible endpoint that grades MM-Vet")
    parser.add_argument("--judge-model", default="gpt-4-0613", metavar="NAME", help="default: gpt-4-0613")
    images = parser.add_argument_group("tasks that generate images")
    images.add_argument("--sampler", help="pndm, ddim or dpm-solver++ (default: the task's)")
    images.add_argument("--steps", type=int, help="of the sampler (default: the task's)")
    images.add_argument("--guidance-scale", type=float, help="1 is the prompt only (default: the task's)")
    images.add_argument("--inception", type=Path, metavar="FILE", help="pt_inception-2015-12-05-*.pth, for FID")
    images.add_argument("--fid-reference", type=Path, metavar="FILE.npz", help="statistics to compare with (mu, sigma)")
    images.add_argument("--fid-resize", choices=("clean", "legacy_tensorflow"), default="clean")
    images.add_argument("--clip", type=Path, metavar="DIR", help="a CLIP in the layout of transformers; "
                        "it also finds the nearest images of --shots")  # fmt: skip
    synthetic.add_arguments(parser)
    return parser


def _evaluate_model(a: Any) -> None:
    _require("--task", a.task)
    _require("--checkpoint", a.checkpoint)
    _require("--output", a.output)
    names = _names(a.task)
    if names != [synthetic.NAME]:
        _require("--data", a.data)
    if synthetic.NAME in names:
        synthetic.check_arguments(a)
    with heavy_imports():
        from emu_jax.cli import evaluation_output as output
        from emu_jax.evaluation.api import evaluate
        from emu_jax.evaluation.catalog import find_task
        from emu_jax.evaluation.few_shot import Choice, ShotOptions
        from emu_jax.training.processes import start_processes

    for name in names:
        if name != synthetic.NAME:
            find_task(name)
    shots, options = ShotOptions(a.shots, Choice(a.shot_choice), a.seed), _score_options(a)
    start_processes()
    emu = _load(a)
    sampling = {"sampler": a.sampler, "steps": a.steps, "guidance_scale": a.guidance_scale, "seed": a.seed}
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
                options=options,
                sampling={field: value for field, value in sampling.items() if value is not None},
                progress=progress,
            )
        if result is not None:
            results.append(result)
            output.print_result(result, a.output)
    output.print_table(results)


def _score_predictions(a: Any) -> None:
    _require("--task", a.task)
    _require("--output", a.output)
    names = _names(a.task)
    if len(names) != 1:
        raise UserError("--predictions are of one task; name one with --task.")
    if a.checkpoint is not None:
        raise UserError("--predictions are scored without a model; leave out --checkpoint.")
    with heavy_imports():
        from emu_jax.cli import evaluation_output as output
        from emu_jax.evaluation.catalog import find_task
        from emu_jax.evaluation.report import write_task_report
        from emu_jax.evaluation.scoring import FRECHET_DISTANCE, Selection, score_features, score_file

    if names == [FRECHET_DISTANCE]:
        print(f"{FRECHET_DISTANCE}: {score_features(a.predictions, a.output / FRECHET_DISTANCE):.4f}")
        return
    task = find_task(names[0])
    _require("--data", a.data)
    selection = Selection(a.split, a.limit, a.max_missing)
    result = score_file(task, a.data, a.predictions, selection=selection, options=_score_options(a))
    result.write(a.output / task.name)
    write_task_report(result, a.output / task.name)
    output.print_result(result, a.output)
    output.print_table([result])


def _load(a: Any) -> Any:
    import jax

    from emu_jax.cli.loading import one_adapter
    from emu_jax.generation.api import load
    from emu_jax.sharding.mesh import make_mesh, parse_mesh

    devices = jax.local_devices()
    mesh = None
    if a.mesh or len(devices) > 1:
        mesh = make_mesh(parse_mesh(a.mesh or "fsdp:-1"), devices=devices)
    return load(a.checkpoint, dtype=a.dtype, mesh=mesh, quantization=a.quantization, adapter=one_adapter(a.adapter))


def _score_options(a: Any) -> Any:
    from emu_jax.evaluation.grader import Grader
    from emu_jax.evaluation.image_metrics.networks import ImageNetworks
    from emu_jax.evaluation.image_metrics.resize import Resize
    from emu_jax.evaluation.metrics.vqa import VqaProtocol
    from emu_jax.evaluation.task import ScoreOptions

    grader = Grader(a.judge_base_url, a.judge_model, a.output / "mmvet") if a.judge_base_url else None
    networks = ImageNetworks(a.inception, a.clip, Resize(a.fid_resize), a.fid_reference)
    return ScoreOptions(VqaProtocol(a.vqa_protocol), grader, networks)


def _names(tasks: str) -> list[str]:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--task names no task; `python -m emu_jax evaluate --list` shows them.")
    return names


def _require(flag: str, value: Any) -> None:
    if value is None:
        raise UserError(f"{flag} is required (`python -m emu_jax evaluate --help` shows examples).")
