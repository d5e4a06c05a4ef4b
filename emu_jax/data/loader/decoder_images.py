"""Pictures alone, for training an autoencoder: every image of prepared sets, one of each document a pass."""

import dataclasses

import grain
import numpy as np

from emu_jax.data.document import Document, Image, Video
from emu_jax.data.images import preprocess
from emu_jax.data.loader.prepared import PreparedSet
from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageDataConfig:
    """Attributes:
    sets: folders that `prepare-data` wrote.
    image_size: pixels a side.
    """

    sets: tuple[str, ...]
    image_size: int


def make_image_loader(
    config: ImageDataConfig, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Batches `{"images": uint8 [rows, H, W, 3]}` for ever, this process's rows of each; resumable at any batch.

    Raises:
      UserError: no sets, or a batch that does not divide among the processes.
    """
    if not config.sets:
        raise UserError("pictures.sets is empty; name at least one prepared set.")
    if batch_size % process_count:
        raise UserError(f"A batch of {batch_size} pictures does not divide among {process_count} processes.")

    def draw(document: Document, rng: np.random.Generator) -> dict[str, np.ndarray]:
        images = pictures(document)
        return {"images": preprocess(images[int(rng.integers(len(images)))], config.image_size)}

    documents = [grain.MapDataset.source(PreparedSet(path)).filter(pictures) for path in config.sets]
    dataset = grain.MapDataset.concatenate(documents).seed(seed).shuffle()[process_index::process_count]
    return iter(dataset.random_map(draw).repeat().to_iter_dataset().batch(batch_size // process_count))


def pictures(document: Document) -> list[bytes | np.ndarray]:
    """The images of a document, frames that were taken of its videos included."""
    found: list[bytes | np.ndarray] = []
    for segment in document.segments:
        if isinstance(segment, Image):
            found.append(segment.data)
        elif isinstance(segment, Video) and not isinstance(segment.data, bytes):
            found += [frame.data for frame in segment.data]
    return found
