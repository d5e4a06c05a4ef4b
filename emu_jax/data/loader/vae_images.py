"""Load the images of prepared sets for training an autoencoder: one image of each document per pass."""

import dataclasses

import grain
import numpy as np

from emu_jax.bounds import Checked, Pixels
from emu_jax.data.document import Document, Image, Video
from emu_jax.data.images import decoder_pixels
from emu_jax.data.loader.divided import DividedBatches
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageDataConfig(Checked):
    """Options for loading images.

    Attributes:
      sets: folders that `prepare-data` wrote.
      image_size: pixels per side.
      allow_upscale: enlarge stored images that are smaller, instead of refusing them.
    """

    sets: tuple[str, ...]
    image_size: Pixels
    allow_upscale: bool = False


def make_image_loader(
    config: ImageDataConfig, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> DividedBatches:
    """Return an endless iterator of batches `{"images": uint8 [rows, H, W, 3]}`, resumable at any batch.

    Each batch has the rows of this process.

    Raises:
      UserError: no sets, or a batch size that does not divide among the processes; from the iterator, an image smaller
        than `image_size`.
    """
    if not config.sets:
        raise UserError("The image data has no sets; name at least one prepared set.")

    def draw(document: Document, rng: np.random.Generator) -> dict[str, np.ndarray]:
        images = document_images(document)
        image = images[int(rng.integers(len(images)))]
        return {"images": decoder_pixels(image, config.image_size, allow_upscale=config.allow_upscale)}

    documents = [grain.MapDataset.source(PreparedSet(path)).filter(document_images) for path in config.sets]
    items = grain.MapDataset.concatenate(documents).seed(seed).shuffle().random_map(draw).repeat()
    return DividedBatches(items, batch_size=batch_size, process_index=process_index, process_count=process_count)


def document_images(document: Document) -> list[bytes | np.ndarray]:
    """Return the images of a document, including the stored frames of its videos."""
    found: list[bytes | np.ndarray] = []
    for segment in document.segments:
        if isinstance(segment, Image):
            found.append(segment.data)
        elif isinstance(segment, Video) and not isinstance(segment.data, bytes):
            found += [frame.data for frame in segment.data]
    return found
