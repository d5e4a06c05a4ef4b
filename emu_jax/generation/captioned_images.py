"""Captioned pictures as batches, for a run that computes its conditions and latents: pixels and prompts, no model."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from emu_jax.data.document import Document
from emu_jax.data.images import preprocess
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.loader.visual_decoder_examples import Condition, WeightedSet, endless, rows_per_process
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.decoder_examples import as_text, caption_and_image
from emu_jax.generation.prompt import build_prompt, pad_rows

_LOOKED_AT = 1000  # documents before it is said that a set holds no pairs


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """Batches of `target_images` uint8 `[B S S 3]` for the autoencoder, and beside them what the condition is made of.

    For `Condition.PREDICTED` the prompts that end in `[IMG]`, left-padded: `prompt_tokens[B L]` int32 and
    `prompt_is_token[B L]`; for `Condition.ENCODED` the pictures once more as the vision encoder takes them,
    `images[B V V 3]` uint8.

    Attributes:
      sets: folders of image-text pairs, from prepare-data.
      target_size: S, pixels.
      image_size: V, pixels.
      prompt_length: L, tokens; pairs with a longer prompt are left out.
      max_caption_length: characters; pairs with a longer caption are left out.
    """

    sets: tuple[WeightedSet, ...]
    tokenizer: Tokenizer
    condition: Condition
    target_size: int
    image_size: int
    prompt_length: int
    max_caption_length: int

    def loader(
        self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """Batches for ever, this process's rows of each, in the order of stored examples; resumable at any batch.

        Raises:
          UserError: a set that is not there or holds no pairs, or a batch that does not divide among the processes.
        """
        rows = rows_per_process(batch_size, process_count)
        opened = [PreparedSet(one.path) for one in self.sets]
        for one in opened:
            self._check(one)
        documents = endless(
            opened,
            weights=[one.weight for one in self.sets],
            seed=seed,
            process_index=process_index,
            process_count=process_count,
        )
        # A row that is None is no row: Grain leaves it out.
        return iter(documents.map(self.row).to_iter_dataset().batch(rows))

    def row(self, document: Document) -> dict[str, np.ndarray] | None:
        """One row of a batch; None for what is left out."""
        pair = caption_and_image(document, self.max_caption_length)
        if pair is None:
            return None
        caption, picture = pair
        row = {"target_images": preprocess(picture, self.target_size)}
        if self.condition is Condition.ENCODED:
            return row | {"images": preprocess(picture, self.image_size)}
        prompt = build_prompt(
            as_text(caption, self.tokenizer),
            tokenizer=self.tokenizer,
            num_image_tokens=0,
            image_size=self.image_size,
            open_image=True,
        )
        if len(prompt.tokens) > self.prompt_length:
            return None
        tokens, is_token = pad_rows([prompt.tokens], length=self.prompt_length, pad_id=self.tokenizer.pad_id)
        return row | {"prompt_tokens": tokens[0], "prompt_is_token": is_token[0]}

    def _check(self, documents: PreparedSet) -> None:
        looked_at: Sequence[int] = range(min(len(documents), _LOOKED_AT))
        if all(self.row(documents[index]) is None for index in looked_at):
            raise UserError(
                f"None of the first {len(looked_at)} documents of {documents.path} is a picture with a caption of at "
                f"most {self.max_caption_length} characters and {self.prompt_length} tokens."
            )
