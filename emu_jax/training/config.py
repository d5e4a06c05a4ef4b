"""What a run is told about its optimizer, its length and its habits."""

import dataclasses
import enum

from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig


class Schedule(enum.Enum):
    """Shape of the learning rate after the warm-up; every one peaks at 1 and multiplies each part's own peak."""

    COSINE = "cosine"  # down to `final_fraction` along half a cosine
    CONSTANT = "constant"
    WSD = "wsd"  # constant, then linearly to `final_fraction` over the last `cooldown_fraction` of the steps
    PIECEWISE = "piecewise"  # constant between `boundaries`, at the shares of `values`


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a peak learning rate per part, and Muon where it is asked for.

    Attributes:
      learning_rate: peak of every parameter that no pattern of `part_learning_rates` matches.
      part_learning_rates: (regex on the "/"-joined path, peak); the first that matches a path counts.
      schedule: shape of the learning rate after the warm-up.
      warmup_steps: steps of linear warm-up; below 1 it is a share of all steps.
      cooldown_fraction: share of the steps over which WSD falls.
      final_fraction: what is left of the peak at the end of COSINE and WSD.
      boundaries: steps at which PIECEWISE changes; `values` are the shares of the peak from each of them on.
      values: as many as `boundaries`. Before the first boundary the share is 1.
      muon: regexes on paths of kernels that Muon steps instead of Adam (`training/muon.py`); default: none.
      weight_decay: decoupled; on the parameters that `no_decay` does not match.
      no_decay: regexes on paths. Default: norms, biases, embeddings, and learned positions and queries.
      clip_norm: global norm of the gradient of all that trains is cut to this; None leaves it.
      moment_dtype: dtype in which the moments are kept; None means each parameter's own.
      ema_decay: decay of an exponential moving average of the trainable parameters; None keeps none.
    """

    learning_rate: float = 1e-4
    part_learning_rates: tuple[tuple[str, float], ...] = ()
    schedule: Schedule = Schedule.COSINE
    warmup_steps: float = 0.02
    cooldown_fraction: float = 0.2
    final_fraction: float = 0.0
    boundaries: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    muon: tuple[str, ...] = ()
    weight_decay: float = 0.05
    no_decay: tuple[str, ...] = (r"norm[^/]*(/|$)", r"bias", r"embed[^/]*$", r"positions$", r"queries$")
    clip_norm: float | None = 1.0
    moment_dtype: str | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if len(self.boundaries) != len(self.values):
            raise UserError(
                f"optimizer.boundaries ({len(self.boundaries)}) and optimizer.values ({len(self.values)}) must pair up."
            )
        if self.schedule is Schedule.PIECEWISE and not self.boundaries:
            raise UserError("optimizer.schedule = 'piecewise' wants optimizer.boundaries and optimizer.values.")
        if self.moment_dtype not in (None, "float32", "bfloat16"):
            raise UserError(f"optimizer.moment_dtype must be float32, bfloat16 or None, not {self.moment_dtype!r}.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved and what is kept.

    Attributes:
      every_steps: period; the end of the run and a stop by signal save too. 0 saves at those alone.
      keep: how many of the newest steps stay.
      keep_every_steps: a step that is a multiple of this stays for good; None keeps none so.
      keep_steps: these steps are saved and stay for good, such as the starts of other runs' cooldowns.
      keep_every_hours: one step in so many hours stays for good; None keeps none so.
      best_metric: name of a logged metric whose `keep_best` best steps stay as well.
      best_is_lowest: whether the lowest value of `best_metric` is the best.
      asynchronous: write in the background while training goes on.
    """

    every_steps: int = 1000
    keep: int = 3
    keep_every_steps: int | None = None
    keep_steps: tuple[int, ...] = ()
    keep_every_hours: float | None = None
    best_metric: str | None = None
    keep_best: int = 1
    best_is_lowest: bool = True
    asynchronous: bool = True


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run of the loop.

    Attributes:
      steps: optimizer steps in all, counted from the beginning of the run (not from a resume).
      accumulation: microbatches a step; the batch that the data yields is cut into so many.
      seed: of parameters and dropout.
      warm_start: a model directory, or one step of another run, whose parameters this run begins with.
      log_every: steps between two log lines; metrics in a line are means over those steps.
      evaluate_every: steps between two calls of the evaluations; 0 calls them at the end alone.
      max_skipped_in_row: so many steps in a row with a non-finite gradient stop the run.
      collapse_variance: the run warns when the visual embeddings' variance over the batch falls below this share of
        the highest logged so far; a healthy run stays far above.
      collapse_rank: it warns as well when their effective rank falls below this.
      run_ahead: steps that may be on their way to the device before the oldest has finished.
      profile: write an XLA profile of steps 10 to 13 of this process under WORKDIR/profile.
      compiler_options: of XLA for the train step, as in "xla_tpu_rwb_fusion=false"; the last of a name counts.
      wandb: project on Weights & Biases that the metrics go to as well; None for none.
    """

    steps: int
    accumulation: int = 1
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    warm_start: str | None = None
    log_every: int = 50
    evaluate_every: int = 0
    max_skipped_in_row: int = 10
    collapse_variance: float = 0.02
    collapse_rank: float = 1.5
    run_ahead: int = 2
    profile: bool = False
    compiler_options: tuple[str, ...] = ()
    wandb: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "log_every", "max_skipped_in_row", "run_ahead"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} must be at least 1, not {getattr(self, name)}.")
        for option in self.compiler_options:
            if not all(option.partition("=")):
                raise UserError(f"train.compiler_options are as in 'xla_tpu_rwb_fusion=false', not {option!r}.")
