"""The batch that the loader yields, and its shapes and dtypes."""

import dataclasses

import jax
import numpy as np

from emu_jax.bounds import Checked, Count, Pixels, Tokens

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchConfig(Checked):
    """The fixed shape of a batch.

    Attributes:
      batch_size: B, rows over all processes.
      length: L, tokens per row.
      max_images: I, image slots per row.
      image_size: H = W, in pixels.
    """

    batch_size: Count
    length: Tokens
    max_images: Count
    image_size: Pixels


def batch_spec(config: BatchConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of a batch: tokens [B L], images [B I H W 3] and the other arrays.

    `segment_ids` is 0 on padding and 1, 2, ... for the documents of a row; `positions` restarts with each document.
    `text_loss_mask` is 1 at the positions whose next-token prediction counts, `regression_mask` at the positions
    (`[IMG]` and each `<image>`) whose prediction of the next input embedding counts. The images of a row fill slots
    0 .. num_images - 1 in the order of the `<image>` runs in `tokens`. `source_ids` is the data set of each position.
    """
    rows = (config.batch_size, config.length)
    images = (config.batch_size, config.max_images, config.image_size, config.image_size, 3)
    return {
        "tokens": jax.ShapeDtypeStruct(rows, np.int32),
        "positions": jax.ShapeDtypeStruct(rows, np.int32),
        "segment_ids": jax.ShapeDtypeStruct(rows, np.int32),
        "images": jax.ShapeDtypeStruct(images, np.uint8),
        "num_images": jax.ShapeDtypeStruct(rows[:1], np.int32),
        "text_loss_mask": jax.ShapeDtypeStruct(rows, np.float32),
        "regression_mask": jax.ShapeDtypeStruct(rows, np.float32),
        "source_ids": jax.ShapeDtypeStruct(rows, np.int32),
    }


def empty_batch(config: BatchConfig, *, pad_id: int) -> Batch:
    """Return a batch that holds only padding."""
    batch = {name: np.zeros(spec.shape, spec.dtype) for name, spec in batch_spec(config).items()}
    batch["tokens"][:] = pad_id
    return batch


@dataclasses.dataclass(frozen=True)
class Fill:
    """Fractions of the token positions and of the image slots of a batch that are used."""

    tokens: float
    images: float


def fill(batch: Batch) -> Fill:
    """Return the fractions of token positions and image slots that belong to a document."""
    rows, slots = batch["images"].shape[:2]
    return Fill(
        tokens=float(np.mean(batch["segment_ids"] > 0)),
        images=float(np.sum(batch["num_images"])) / (rows * slots),
    )
