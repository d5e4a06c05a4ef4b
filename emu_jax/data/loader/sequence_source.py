"""Random access to the token sequences of a mixture of prepared sets."""

import dataclasses
from pathlib import Path

import numpy as np

from emu_jax.data.batch import BatchConfig
from emu_jax.data.document import Document, Image, Segment, Video
from emu_jax.data.images import DecodeError
from emu_jax.data.limits import DEFAULT_LIMITS, Limits
from emu_jax.data.loader.mixture import DocumentIndex, Mixture
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.loader.rejects import UnusableDocument
from emu_jax.data.preference import build_pair
from emu_jax.data.sequence import TokenSequence, build_sequence
from emu_jax.data.sequence_config import Answers, SequenceConfig
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.data.video import pick_frames, take_frames


@dataclasses.dataclass(frozen=True)
class SequenceSource:
    """Everything that a reader needs except its number; the same for every reader of a run.

    Attributes:
      homogeneous: each batch has documents of one set. There is then one stream of positions per set, otherwise one
        stream for all sets.
      random_frames: see `DataConfig.frame_choice`.
      rejects: folder in which each reader lists the documents it skipped.
    """

    sets: tuple[PreparedSet, ...]
    sequences: tuple[SequenceConfig, ...]
    mixture: Mixture
    tokenizer: Tokenizer
    batch: BatchConfig
    pool: int
    homogeneous: bool
    random_frames: bool
    max_rejected: float
    rejects: Path | None
    limits: Limits = DEFAULT_LIMITS

    @property
    def streams(self) -> int:
        """Number of streams of positions."""
        return len(self.sets) if self.homogeneous else 1

    def document_at(self, stream: int, position: int) -> DocumentIndex | None:
        """Return the document at a position of a stream, or None if its set has no epochs left."""
        return self.mixture.of_set(stream, position) if self.homogeneous else self.mixture[position]

    def end(self, stream: int) -> int:
        """Return the number of positions of a stream."""
        return self.mixture.set_length(stream) if self.homogeneous else len(self.mixture)

    def sequence_at(self, stream: int, position: int) -> tuple[TokenSequence, int] | None:
        """Return the sequence at a position and the number of its set, or None if that set has no epochs left.

        Raises:
          UnusableDocument: the document cannot become a sequence, or no position of it has a loss.
        """
        found = self.document_at(stream, position)
        if found is None:
            return None
        # One generator per position, so that random choices do not depend on the reader or the time of reading.
        rng = np.random.default_rng([self.mixture.seed, stream, position])
        config = self.sequences[found.set]
        source, key = self.sets[found.set].path.name, f"record {found.index}"
        try:
            document = self.sets[found.set][found.index]
            source, key = document.source, document.key
            document = self._with_frames(document, config, rng)
            build = build_pair if config.answers is Answers.BOTH else build_sequence
            sequence = build(document, config=config, tokenizer=self.tokenizer, rng=rng)
            if not sequence.has_loss:
                raise DecodeError("no position of the document has a loss")
        except DecodeError as error:
            raise UnusableDocument(source, key, error) from None
        return sequence, found.set

    def _with_frames(self, document: Document, config: SequenceConfig, rng: np.random.Generator) -> Document:
        """Replace encoded videos by frames, and frames by as many as the sequence has."""
        if not any(isinstance(segment, Video) for segment in document.segments):
            return document
        frame_rng = rng if self.random_frames else None
        segments: list[Segment] = []
        for segment in document.segments:
            if isinstance(segment, Video):
                if isinstance(segment.data, bytes):
                    decoded = take_frames(
                        segment.data,
                        frames=config.frames,
                        size=self.batch.image_size,
                        rng=frame_rng,
                        limits=self.limits,
                    )
                    frames = tuple(Image(frame) for frame in decoded)
                else:
                    frames = pick_frames(segment.data, count=config.frames, rng=frame_rng)
                segment = dataclasses.replace(segment, data=frames)
            segments.append(segment)
        return dataclasses.replace(document, segments=tuple(segments))
