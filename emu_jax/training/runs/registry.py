"""The runs of all stages, by the names that `config.stage` accepts."""

from collections.abc import Callable, Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.training.runs.emu import EMU_STAGES, PRETRAIN, open_emu_run
from emu_jax.training.runs.run import Run
from emu_jax.training.runs.vae import VAE, open_vae_run
from emu_jax.training.runs.visual_decoder import VISUAL_DECODER, open_visual_decoder_run

RUNS: dict[str, Callable[[Any], Run]] = {
    **dict.fromkeys(EMU_STAGES, open_emu_run),
    VAE: open_vae_run,
    VISUAL_DECODER: open_visual_decoder_run,
}


def open_run(config: Mapping[str, Any] | Any) -> Run:
    """Return the run of a config, by its `stage`.

    Raises:
      UserError: unknown stage; unknown, missing or mistyped fields; or fields that contradict each other.
    """
    stage = config.get("stage", PRETRAIN)
    if stage not in RUNS:
        raise UserError(f"config.stage must be one of {', '.join(RUNS)}, not {stage!r}.")
    return RUNS[stage](config)
