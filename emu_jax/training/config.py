"""Configuration of a training run: its length, optimizer, checkpoints and logs."""

import dataclasses
import enum

from emu_jax.bounds import Checked, Count, CountOrZero, Epsilon, Fraction, NonNegative, Positive, Rate, Seed
from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.waiting import WaitConfig


class Schedule(enum.Enum):
    """Shape of the learning rate after the warm-up. Each shape is 1 at its peak and multiplies the peak rates."""

    COSINE = "cosine"  # half a cosine down to `final_fraction`
    CONSTANT = "constant"
    WSD = "wsd"  # warmup-stable-decay: constant, then linear to `final_fraction` over the last `cooldown_fraction`
    PIECEWISE = "piecewise"  # constant between `boundaries`, with the factors in `values`


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW with peak learning rates per part of the model, and Muon for selected kernels.

    Attributes:
      learning_rate: peak rate of each parameter that no pattern of `part_learning_rates` matches.
      part_learning_rates: (regex on the "/"-joined path, peak rate) pairs; the first match counts.
      schedule: shape of the learning rate after the warm-up.
      warmup_fraction: fraction of all steps used for linear warm-up.
      warmup_steps: number of warm-up steps; if set, it replaces `warmup_fraction`.
      cooldown_fraction: fraction of all steps over which WSD decays.
      final_fraction: learning rate at the end of COSINE and WSD, as a fraction of the peak.
      boundaries: steps at which PIECEWISE changes.
      values: factors of the peak rate, one from each boundary on; the factor before the first boundary is 1.
      muon: regexes on the paths of the kernels that Muon updates instead of Adam (`training/muon.py`).
      weight_decay: decoupled weight decay, on the parameters that `no_decay` does not match.
      no_decay: regexes on paths. Default: norms, biases, embeddings, learned positions and queries.
      clip_norm: maximum global norm of the gradient of all trainable parameters; None disables clipping.
      moment_dtype: dtype of the optimizer's moments; None uses the dtype of each parameter.
      ema_decay: decay of an exponential moving average of the trainable parameters; None computes no average.
    """

    learning_rate: Rate = 1e-4
    part_learning_rates: tuple[tuple[str, Rate], ...] = ()
    schedule: Schedule = Schedule.COSINE
    warmup_fraction: Fraction = 0.02
    warmup_steps: CountOrZero | None = None
    cooldown_fraction: Fraction = 0.2
    final_fraction: Fraction = 0.0
    boundaries: tuple[CountOrZero, ...] = ()
    values: tuple[NonNegative, ...] = ()
    b1: Fraction = 0.9
    b2: Fraction = 0.98
    eps: Epsilon = 1e-6
    muon: tuple[str, ...] = ()
    weight_decay: Rate = 0.05
    no_decay: tuple[str, ...] = (r"norm[^/]*(/|$)", r"bias", r"embed[^/]*$", r"positions$", r"queries$")
    clip_norm: Positive | None = 1.0
    moment_dtype: str | None = None
    ema_decay: Fraction | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_fraction < 1:
            raise UserError(
                f"optimizer.warmup_fraction must be at least 0 and below 1, not {self.warmup_fraction}; "
                "set optimizer.warmup_steps to give a number of steps."
            )
        super().__post_init__()
        if len(self.boundaries) != len(self.values):
            raise UserError(
                f"optimizer.boundaries has {len(self.boundaries)} entries and optimizer.values has {len(self.values)}; "
                "they must have the same number."
            )
        if self.schedule is Schedule.PIECEWISE and not self.boundaries:
            raise UserError("optimizer.schedule = 'piecewise' requires optimizer.boundaries and optimizer.values.")
        if self.moment_dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"optimizer.moment_dtype must be float32, bfloat16 or None, not {self.moment_dtype!r}.")


class OnFailedSave(enum.Enum):
    """The next action of a run after a checkpoint could not be saved, such as on a full disk."""

    STOP = "stop"  # end with an error; the same command resumes from the last good checkpoint
    CONTINUE = "continue"  # report it in one line, and train on until the next save


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Checked):
    """When a run saves checkpoints, and which ones it keeps.

    Attributes:
      every_steps: steps between two checkpoints. The end of a run and a stop by signal also save; 0 saves only then.
      keep: number of newest checkpoints to keep.
      keep_every_steps: keep each step that is a multiple of this; None for no such rule.
      keep_steps: save these steps too, and keep them, such as where the cooldowns of other runs branch off.
      keep_every_hours: keep one checkpoint per this many hours; None for no such rule.
      best_metric: name of a logged metric, such as "loss" or "eval/loss"; keep the steps with its best values.
      keep_best: number of best steps to keep.
      best_is_lowest: True if lower values of `best_metric` are better.
      on_failed_save: action after a failed save. A failed save at the end of the run is always an error.
    """

    every_steps: CountOrZero = 1000
    keep: Count = 3
    keep_every_steps: Count | None = None
    keep_steps: tuple[CountOrZero, ...] = ()
    keep_every_hours: Positive | None = None
    best_metric: str | None = None
    keep_best: Count = 1
    best_is_lowest: bool = True
    on_failed_save: OnFailedSave = OnFailedSave.STOP


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """One call of the training loop.

    Attributes:
      steps: total number of optimizer steps, counted from the start of the run (not from a resume).
      accumulation: number of microbatches per step; each batch is split into this many.
      seed: seed of parameters, dropout and data order.
      mesh: sizes of the device mesh.
      optimizer: optimizer and learning rates.
      checkpoint: saving of checkpoints.
      wait: time limits for waits on the other processes.
      warm_start: model directory, or one checkpoint step of another run, whose parameters initialize this run.
      log_every: steps between two log lines; the metrics of a line are means over these steps.
      evaluate_every: steps between two evaluations; 0 evaluates only at the end.
      max_skipped_in_row: number of consecutive steps with a non-finite gradient after which the run stops.
      profile: write an XLA profile of a few steps to WORKDIR/profile.
      compiler_options: XLA options of the train step, such as "xla_tpu_rwb_fusion=false"; the last value of a name
        counts.
      wandb: Weights & Biases project that also receives the metrics; None for no such copy.
    """

    steps: Count
    accumulation: Count = 1
    seed: Seed = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    wait: WaitConfig = dataclasses.field(default_factory=WaitConfig)
    warm_start: str | None = None
    log_every: Count = 50
    evaluate_every: CountOrZero = 0
    max_skipped_in_row: Count = 10
    profile: bool = False
    compiler_options: tuple[str, ...] = ()
    wandb: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in self.compiler_options:
            if not all(option.partition("=")):
                raise UserError(
                    f"train.compiler_options must have the form 'xla_tpu_rwb_fusion=false', not {option!r}."
                )
