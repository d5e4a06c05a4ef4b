"""Precompute the training examples of the visual decoder: conditions and latents of captioned images."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from emu_jax.data.document import Document, Image, Layout, Text
from emu_jax.data.images import decoder_pixels, preprocess
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.loader.visual_decoder_examples import Condition, Example
from emu_jax.data.prepare.decoder_shards import DecoderShards
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
    allow_upscale: bool = False,
    max_caption_length: int = 150,
    limit: int | None = None,
    batch_size: int = 128,
    shard_size: int = 1024,
    dtype: str = "bfloat16",
    process_index: int = 0,
    process_count: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int | None:
    """Write the examples of all pairs in prepared `sets` and return their number.

    Several processes, also on several machines, share the shards: each calls this with its `process_index`. A call
    after a stopped one resumes with the first shard that is not complete.

    Args:
      image_size: pixels per side of the autoencoder's input.
      allow_upscale: enlarge stored images that are smaller, instead of refusing them.
      max_caption_length: in characters; pairs with a longer caption are left out. The paper drops those over 150.
      limit: maximum number of documents of each set.
      shard_size: documents per shard.
      dtype: of the stored values, bfloat16 or float32.
      progress: called with (documents done, documents in total) of this process.

    Returns:
      The number of examples; None while shards of other processes are missing.
    """
    opened = [PreparedSet(path) for path in sets]
    counts = [len(one) if limit is None else min(limit, len(one)) for one in opened]
    unconditional = emu.generate_embeddings("")
    shards = DecoderShards(
        directory=output,
        documents=sum(counts),
        shard_size=shard_size,
        dtype=dtype,
        unconditional=unconditional,
        settings={
            "condition": condition.value,
            "image_size": image_size,
            "sets": [one.path.name for one in opened],
            "documents_of_sets": counts,
            "max_caption_length": max_caption_length,
        },
    )
    shards.start()
    compute = functools.partial(
        _examples, emu, decoder, condition=condition, image_size=image_size, allow_upscale=allow_upscale
    )
    missing = shards.missing(process_index=process_index, process_count=process_count)
    done, total = 0, sum(len(shards.span(shard)) for shard in missing)

    def examples(numbers: range) -> Iterator[Example | None]:
        nonlocal done
        for first in range(numbers.start, numbers.stop, batch_size):
            batch = range(first, min(first + batch_size, numbers.stop))
            pairs = [caption_and_image(_document(opened, counts, number), max_caption_length) for number in batch]
            valid = [pair for pair in pairs if pair is not None]
            computed = compute(valid) if valid else iter(())
            yield from (None if pair is None else next(computed) for pair in pairs)
            done += len(batch)
            if progress is not None:
                progress(done, total)

    for shard in missing:
        shards.write(shard, examples(shards.span(shard)))
    return shards.finish()


def _document(sets: Sequence[PreparedSet], counts: Sequence[int], number: int) -> Document:
    """Return document `number` of the first `counts` documents of all sets, in order."""
    for one, count in zip(sets, counts, strict=True):
        if number < count:
            return one[number]
        number -= count
    raise IndexError(number)


def caption_and_image(document: Document, max_caption_length: int) -> tuple[str, bytes | np.ndarray] | None:
    """Return the caption and the image of a pair, or None for other documents and for captions that are too long."""
    texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
    images = [segment.data for segment in document.segments if isinstance(segment, Image)]
    if document.layout is not Layout.PAIR or len(texts) != 1 or len(images) != 1:
        return None
    return (texts[0], images[0]) if len(texts[0]) <= max_caption_length else None


def as_text(caption: str, tokenizer: Tokenizer) -> Tokens:
    """Return a caption as tokens, so that a caption such as "IMG_0001.jpg" is not read as a file."""
    text = caption.rstrip()
    return Tokens(tuple(tokenizer.encode(text)) if text else ())


def _examples(
    emu: EmuPipeline,
    decoder: VisualDecoder,
    pairs: Sequence[tuple[str, bytes | np.ndarray]],
    *,
    condition: Condition,
    image_size: int,
    allow_upscale: bool,
) -> Iterator[Example]:
    pixels = np.stack([decoder_pixels(image, image_size, allow_upscale=allow_upscale) for _, image in pairs])
    # Round the number of rows up, so that the encoder compiles for a few shapes only.
    padding = np.zeros((power_of_two(len(pairs)) - len(pairs), *pixels.shape[1:]), np.uint8)
    pixels = np.concatenate([pixels, padding])
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
