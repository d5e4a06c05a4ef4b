"""What the visual decoder is trained on: captioned pictures, turned once into conditions and latents."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from emu_jax.data.document import Document, Image, Layout, Text
from emu_jax.data.images import preprocess
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.loader.visual_decoder_examples import Condition, Example, write_examples
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.generation.buckets import power_of_two
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import Tokens


def prepare_examples(
    emu: EmuPipeline,
    decoder: VisualDecoder,
    *,
    sets: Sequence[str],
    output: Path,
    condition: Condition = Condition.PREDICTED,
    image_size: int,
    max_caption_length: int = 150,
    limit: int | None = None,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the examples of all pairs in prepared `sets`; how many there are.

    Args:
      image_size: pixels a side of what the autoencoder encodes.
      max_caption_length: pairs with a longer caption (characters) are left out; the paper drops those over 150.
      limit: at most so many documents of each set.
      progress: is called with (documents done, documents in all).
    """
    opened = [PreparedSet(path) for path in sets]
    counts = [len(one) if limit is None else min(limit, len(one)) for one in opened]
    documents = itertools.chain.from_iterable(
        (one[index] for index in range(count)) for one, count in zip(opened, counts, strict=True)
    )

    def examples() -> Iterator[Example | None]:
        done = 0
        while some := list(itertools.islice(documents, batch_size)):
            pairs = [caption_and_image(document, max_caption_length) for document in some]
            kept = [pair for pair in pairs if pair is not None]
            made = _examples(emu, decoder, kept, condition=condition, image_size=image_size) if kept else iter(())
            yield from (None if pair is None else next(made) for pair in pairs)
            done += len(some)
            if progress is not None:
                progress(done, sum(counts))

    return write_examples(
        output,
        examples(),
        unconditional=emu.generate_embeddings(""),
        settings={"condition": condition.value, "image_size": image_size, "sets": list(sets)},
    )


def caption_and_image(document: Document, max_caption_length: int) -> tuple[str, bytes | np.ndarray] | None:
    """The two halves of a pair; None for what is no pair, or has too long a caption."""
    texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
    images = [segment.data for segment in document.segments if isinstance(segment, Image)]
    if document.layout is not Layout.PAIR or len(texts) != 1 or len(images) != 1:
        return None
    return (texts[0], images[0]) if len(texts[0]) <= max_caption_length else None


def as_text(caption: str, tokenizer: Tokenizer) -> Tokens:
    """A caption as a prompt that is text whatever it says: "IMG_0001.jpg" is no file to be read."""
    text = caption.rstrip()
    return Tokens(tuple(tokenizer.encode(text)) if text else ())


def _examples(
    emu: EmuPipeline,
    decoder: VisualDecoder,
    pairs: Sequence[tuple[str, bytes | np.ndarray]],
    *,
    condition: Condition,
    image_size: int,
) -> Iterator[Example]:
    pixels = np.stack([preprocess(image, image_size) for _, image in pairs])
    # Few shapes, so that the encoder is not compiled anew for each number of pairs that were left out.
    blank = np.zeros((power_of_two(len(pairs)) - len(pairs), *pixels.shape[1:]), np.uint8)
    pixels = np.concatenate([pixels, blank])
    posterior = decoder.encode(pixels.astype(np.float32) / 127.5 - 1)
    if condition is Condition.PREDICTED:
        prompts = [as_text(caption, emu.tokenizer) for caption, _ in pairs]
        conditioning = emu.generate_embeddings_batch(prompts, batch_size=len(pairs))
    else:
        conditioning = emu.visual_embeddings([preprocess(image, emu.config.vision.image_size) for _, image in pairs])
    mean, log_variance = np.asarray(posterior.mean), np.asarray(posterior.log_variance)
    for row in range(len(pairs)):
        yield {
            "conditioning": conditioning[row],
            "latent_mean": mean[row],
            "latent_log_variance": log_variance[row],
        }
