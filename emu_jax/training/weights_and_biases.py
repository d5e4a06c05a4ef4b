"""A copy of the metrics to Weights & Biases, where `train.wandb` names a project and the package is installed."""

import hashlib
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError


class WandbRun:
    """One run on wandb; the same workdir goes on with the same one."""

    def __init__(self, workdir: str | Path, *, project: str, config: Mapping[str, Any]) -> None:
        """Opens it. Where and as whom is wandb's own affair: WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY.

        Raises:
          UserError: the package is not installed, or does not let the run begin.
        """
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"train.wandb is {project!r}, and wandb is not installed: pip install -c constraints.txt -e "
                "'.[wandb]', or leave train.wandb out (metrics.jsonl and TensorBoard are written anyway)."
            )
        import wandb

        path = Path(workdir).absolute()
        try:
            self._run = wandb.init(
                project=project,
                name=path.name,
                id=hashlib.sha256(str(path).encode()).hexdigest()[:12],
                resume="allow",
                dir=path,
                config=dict(config),
            )
        except wandb.Error as error:
            raise UserError(f"wandb does not begin ({error}); `wandb login`, or WANDB_MODE=offline.") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The finite ones of a step's metrics."""
        self._run.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    def warn(self, step: int, warning: str) -> None:
        """A warning, as wandb shows alerts."""
        self._run.alert(title="Warning", text=f"step {step}: {warning}")

    def close(self) -> None:
        """Ends it well."""
        self._run.finish()
