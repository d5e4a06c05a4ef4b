"""Options of the loader."""

import dataclasses
import enum

from emu_jax.bounds import Checked, Count, Fraction, NonNegative, NumFrames, NumProcesses, Tokens
from emu_jax.data.batch import BatchConfig
from emu_jax.data.limits import DEFAULT_LIMITS, Limits
from emu_jax.data.sequence_config import Answers, Regress, SystemMessage


class Mixing(enum.Enum):
    """The data sets of one batch."""

    MIXED = "mixed"  # documents of all sets by weight
    HOMOGENEOUS = "homogeneous"  # one set per step, drawn by weight, as the paper appears to do


class Frames(enum.Enum):
    """The choice of the frames of a video."""

    UNIFORM = "uniform"
    RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class SetConfig(Checked):
    """One prepared set of the mixture.

    Attributes:
      path: the folder that `prepare-data` wrote.
      name: for metrics; empty means the path.
      weight: relative number of documents drawn (with HOMOGENEOUS mixing: of steps).
      epochs: passes over the set; None repeats it indefinitely.
      page_image_first: see `SequenceConfig`; 0.5 for MMC4.
      max_images: images per document; the paper uses 5 for a page of MMC4. None: `max_images_per_document`.
      max_length: tokens per document, for shorter sections of pages than a row (the paper: 512 and 1024). None: a row.
    """

    path: str
    name: str = ""
    weight: NonNegative = 1.0
    epochs: Count | None = None
    split: str = "train"
    page_image_first: Fraction = 1.0
    max_images: Count | None = None
    max_length: Count | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Data sets, and options for converting their documents to batches.

    Attributes:
      sets: the mixture.
      batch: shape of a batch over all processes.
      max_images_per_document: maximum number of images per document, for sets that have no `max_images`. None: as many
        as fit in a row.
      image_first, predict_boi, regress, num_image_tokens, frames, system_message, answers: see `SequenceConfig`.
      frame_choice: evenly spaced or random frames of a video.
      pool: sequences per reader that wait to be packed. A larger pool packs rows tighter, but takes longer to read
        again when a run resumes.
      workers: worker processes; 0 reads in the process itself.
      prefetch: batches made in advance, by a thread or by each worker; 0 makes each batch when it is requested.
      shuffle: False keeps the order of the documents, for inspection and evaluation.
      max_rejected: fraction of documents that may be unusable before the loader stops.
      rejects: folder in which each reader lists the documents it skipped; `train` uses WORKDIR/rejects. Empty: no list.
      limits: bounds on stored images and videos.
    """

    sets: tuple[SetConfig, ...]
    batch: BatchConfig
    num_image_tokens: Tokens = 32
    max_images_per_document: Count | None = None
    image_first: Fraction = 0.5
    predict_boi: bool = False
    regress: Regress = Regress.ALL
    system_message: SystemMessage = SystemMessage.NONE
    answers: Answers = Answers.CHOSEN
    frames: NumFrames = 8
    frame_choice: Frames = Frames.UNIFORM
    mixing: Mixing = Mixing.MIXED
    pool: Count = 256
    workers: NumProcesses = 0
    prefetch: NumProcesses = 2
    shuffle: bool = True
    max_rejected: Fraction = 0.01
    rejects: str = ""
    limits: Limits = DEFAULT_LIMITS
