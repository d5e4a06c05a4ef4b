"""`emu_jax.evaluate`: a model on a task, from Python."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emu_jax.checkpoints.fingerprint import fingerprints
from emu_jax.config import to_dict
from emu_jax.errors import UserError
from emu_jax.evaluation.catalog import find_task
from emu_jax.evaluation.features import emu_encoder
from emu_jax.evaluation.few_shot import Choice, FeatureSource, ShotOptions, make_shots
from emu_jax.evaluation.image_generation import GenerateImages, check_reference_images
from emu_jax.evaluation.image_metrics.networks import ImageNetworks
from emu_jax.evaluation.report import write_task_report
from emu_jax.evaluation.results import TaskResult
from emu_jax.evaluation.runner import Division, Progress, run_model, spans_processes
from emu_jax.evaluation.scoring import Selection, read_examples, score_predictions
from emu_jax.evaluation.task import ScoreOptions, Task
from emu_jax.generation.pipeline import EmuPipeline

BATCH_SIZE = 16


def evaluate(
    emu: EmuPipeline,
    task: str | Task,
    data: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    shots: ShotOptions | int = 0,
    max_missing: int = 0,
    batch_size: int = BATCH_SIZE,
    options: ScoreOptions | None = None,
    sampling: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> TaskResult | None:
    """Evaluate a model on a benchmark.

    Args:
      emu: from `emu_jax.load`.
      task: a name of `python -m emu_jax evaluate --list`, or a task of your own.
      data: the folder that holds the task's folder.
      output: takes OUTPUT/TASK/ with predictions.jsonl, scores.json, the server's file and report.html; a run that was
        interrupted is resumed. None saves nothing.
      split: default: the task's first.
      limit: the first examples only.
      shots: few-shot examples in front of each question; a number means so many by RICES, which compares images by
        the CLIP of `options`, or by the vision encoder of the model.
      max_missing: examples that may lack a readable image; they count in no score.
      batch_size: prompts per program.
      options: choices of the metric.
      sampling: fields of `ImageOptions` that replace those of a task that generates images.
      progress: called with the examples done and in all.

    Returns:
      The scores with their intervals; None on processes other than the first.

    Raises:
      UserError: the files are not there or have another layout, or the model cannot do the task.
    """
    task = find_task(task) if isinstance(task, str) else task
    options = options or ScoreOptions()
    selection = Selection(split, limit, max_missing)
    shot_options = ShotOptions(count=shots) if isinstance(shots, int) else shots
    if task.predictor is None:
        raise UserError(f"{task.name} scores given files only; use --predictions.")
    if task.makes_images and not emu.has_visual_decoder:
        raise UserError(f"{task.name} requires a visual decoder, and the model has no visual_decoder/ folder.")
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}.")
    if sampling and isinstance(task.predictor, GenerateImages):
        changed = dataclasses.replace(task.predictor.options, **sampling)
        task = dataclasses.replace(task, predictor=dataclasses.replace(task.predictor, options=changed))
    assert task.predictor is not None
    examples = read_examples(task, Path(data), selection)
    check_reference_images(examples, options)
    fingerprint = weights_fingerprint(emu.params)
    with _folder(output) as parent:
        folder = parent / task.name
        network = functools.partial(_feature_source, emu, fingerprint, options.networks, parent / "features")
        settings = {
            **task.predictor.describe(),
            "shots": _shot_settings(shot_options, options.networks),
            "limit": limit,
            "model": {"weights_fingerprint": fingerprint},
        }
        found = run_model(
            emu,
            task,
            examples,
            folder=folder,
            shots=make_shots(task, Path(data), examples, shot_options, network),
            identity=json.loads(json.dumps({"task": task.name, "split": selection.split_of(task), **settings})),
            batch_size=batch_size,
            max_missing=max_missing,
            division=Division.of(emu),
            progress=progress,
        )
        if found is None:
            return None
        result = score_predictions(
            task,
            examples,
            found.predictions,
            found.missing,
            selection=selection,
            options=dataclasses.replace(options, folder=folder),
            settings=settings,
        )
        if output is not None:
            result.write(folder)
            write_task_report(result, folder)
    return result


def weights_fingerprint(params: Any) -> str:
    """Return 16 hexadecimal digits that change with any bit of the parameters, and not with the mesh."""
    found: Mapping[str, Any] = fingerprints(params)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _feature_source(emu: EmuPipeline, fingerprint: str, networks: ImageNetworks, store: Path) -> FeatureSource:
    """Return the given CLIP, or else the vision encoder of the model."""
    clip = networks.load_clip()
    if clip is not None:
        return FeatureSource(clip.embed_images, clip.fingerprint, store)
    return FeatureSource(emu_encoder(emu), fingerprint, store, together=spans_processes(emu))


def _shot_settings(options: ShotOptions, networks: ImageNetworks) -> dict[str, Any]:
    settings: dict[str, Any] = to_dict(options)
    if options.count and options.choice is Choice.RICES:
        clip = networks.load_clip()
        settings["features"] = "vision encoder" if clip is None else f"{clip.name} ({clip.fingerprint})"
    return settings


@contextlib.contextmanager
def _folder(output: str | os.PathLike[str] | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
