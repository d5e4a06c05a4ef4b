"""The tasks by name; the file of a task is imported on first use."""

import difflib
import importlib
from collections.abc import Sequence

from emu_jax.errors import UserError
from emu_jax.evaluation.task import Task

TASK_NAMES = (
    "coco_karpathy",
    "nocaps",
    "flickr30k",
    "vqav2",
    "okvqa",
    "vizwiz",
    "visdial",
    "mmvet",
    "msvd_qa",
    "msrvtt_qa",
    "nextqa",
    "coco_fid",
    "clip_score",
    "autoencoding",
    "geneval",
    "dpg",
)


def find_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
      UserError: there is no such task; the nearest name is given.
    """
    if name not in TASK_NAMES:
        close = difflib.get_close_matches(name, TASK_NAMES, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"The tasks are {', '.join(TASK_NAMES)}."
        raise UserError(f"There is no task {name!r}. {hint}")
    return importlib.import_module(f"emu_jax.evaluation.tasks.{name}").TASK


def all_tasks() -> Sequence[Task]:
    """Return every task, in the order of the paper's tables."""
    return [find_task(name) for name in TASK_NAMES]
