"""Copy the metrics to Weights & Biases, if `train.wandb` names a project and the package is installed."""

import hashlib
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu_jax.errors import UserError


class WandbRun:
    """One run on Weights & Biases; runs with the same workdir continue the same one."""

    def __init__(self, workdir: str | Path, *, project: str, config: Mapping[str, Any]) -> None:
        """Open the run. The variables WANDB_MODE, WANDB_ENTITY and WANDB_API_KEY set the server and account.

        Raises:
          UserError: the package is not installed, or it cannot start a run.
        """
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"train.wandb is {project!r}, but wandb is not installed: pip install -c constraints.txt -e "
                "'.[wandb]', or leave train.wandb out (metrics.jsonl and TensorBoard are always written)."
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
            raise UserError(f"wandb cannot start a run ({error}); try `wandb login` or WANDB_MODE=offline.") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the finite metrics of a step."""
        self._run.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    def warn(self, step: int, warning: str) -> None:
        """Send a warning as an alert."""
        self._run.alert(title="Warning", text=f"step {step}: {warning}")

    def close(self) -> None:
        """Mark the run as finished."""
        self._run.finish()
