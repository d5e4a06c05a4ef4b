"""Compare the config of a run with that of its newest checkpoint, before anything is written to its workdir."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from emu_jax.checkpoints.step import newest_config
from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError

# Fields that may change when a run resumes, as regular expressions on their complete path. A change of any other field
# would change the arithmetic or the order of the data, and is refused.
MAY_CHANGE = re.compile(
    "|".join(
        (
            r"train\.(steps|accumulation|log_every|evaluate_every|max_skipped_in_row|profile|compiler_options|wandb)",
            r"train\.warm_start",  # read only at the start of a run
            r"train\.(mesh|checkpoint|wait)\..*",
            r"train\.optimizer\.(learning_rate|part_learning_rates.*|schedule|boundaries.*|values.*)",
            r"train\.optimizer\.(warmup_fraction|warmup_steps|cooldown_fraction|final_fraction)",
            r"train\.optimizer\.(weight_decay|clip_norm)",
            r"train\.compiler_options.*",
            r"data\.(workers|prefetch|rejects|max_rejected|limits\..*)",
            r"data\.sets\[\d+\]\.(path|name)",  # a set may have moved; its other fields change the mixture
            r"images\.sets\[\d+\]",
            r"tokenizer",  # the path; `check_tokenizer` compares the content
            r"pretrain\.monitors|samples_per_step",
            r".*\.(remat|saved_activations.*)",  # memory of the backward pass
            r"(evaluation|chips).*",
        )
    )
)
_ABSENT = "absent"


def check_resume(config: Any, checkpoints: str | Path, *, tokenizer: Path | None, workdir: Path) -> str | None:
    """Compare `config` with that of the newest checkpoint.

    Args:
      config: complete configuration of the run, a dataclass.
      checkpoints: folder of the checkpoints; may be `gs://...`, and may not exist.
      tokenizer: SentencePiece model of the run; None for a stage without text.
      workdir: folder with the tokenizer.model that the checkpoints were trained with.

    Returns:
      One line that lists the changed fields; None if nothing changed or there is no checkpoint.

    Raises:
      UserError: a change that is not in `MAY_CHANGE`. The message names each field and its two values.
    """
    found = newest_config(epath.Path(checkpoints))
    if found is None:
        return None
    step, saved = found
    start = f"--config.train.warm_start={epath.Path(checkpoints) / str(step)}"
    advice = f"Use the saved values, or start a new run in another --workdir ({start} starts from these weights)."
    refused, allowed = compare(_normalized(type(config), saved), to_dict(config))
    if tokenizer is not None and _differs(tokenizer, workdir / "tokenizer.model"):
        refused.append(f"tokenizer: {tokenizer} is not the {workdir / 'tokenizer.model'} of this run")
    if refused:
        raise UserError(
            f"Checkpoint {step} was trained with another config: {'; '.join(refused)}. These fields change the "
            f"arithmetic or the order of the data. {advice}"
        )
    return f"changed since checkpoint {step}: {'; '.join(allowed)}" if allowed else None


def compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the changes that are refused and those that are allowed, each as "field: old in the checkpoint, new now".

    compare({"train": {"steps": 5}, "stage": "vae"}, {"train": {"steps": 9}, "stage": "instruct"})
    ->  (["stage: 'vae' in the checkpoint, 'instruct' now"], ["train.steps: 5 in the checkpoint, 9 now"])
    """
    old, new = _flatten(saved), _flatten(now)
    refused: list[str] = []
    allowed: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before != after:
            lines = allowed if MAY_CHANGE.fullmatch(name) else refused
            lines.append(f"{name}: {before!r} in the checkpoint, {after!r} now")
    return refused, allowed


def _normalized(cls: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved config with the names and defaults of this version; unchanged if it is of another stage."""
    assert dataclasses.is_dataclass(cls)
    try:
        return to_dict(from_config_dict(cls, saved))
    except UserError:
        return dict(saved)


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries and lists: {"data.sets[0].path": ...}."""
    if isinstance(value, Mapping) and value:
        parts = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        parts = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {path: [] if isinstance(value, tuple) else value}
    return {name: leaf for path, item in parts for name, leaf in _flatten(item, path).items()}


def _differs(one: Path, other: Path) -> bool:
    return other.is_file() and one.is_file() and one.read_bytes() != other.read_bytes()
