"""Batches of captioned images for runs that compute conditions and latents in the step: pixels and prompts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from emu_jax.data.document import Document
from emu_jax.data.images import decoder_pixels, preprocess
from emu_jax.data.loader.divided import DividedBatches, rows_per_process
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.loader.visual_decoder_examples import Condition, WeightedSet, endless
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.decoder_examples import as_text, caption_and_image
from emu_jax.generation.prompt import build_prompt, pad_rows

_CHECKED_DOCUMENTS = 1000  # a set without a pair among them is refused


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """Batches of `target_images` uint8 `[B S S 3]` for the autoencoder, with the inputs of the condition.

    For `Condition.PREDICTED` these are left-padded prompts that end in `[IMG]`: `prompt_tokens[B L]` int32 and
    `prompt_is_token[B L]`. For `Condition.ENCODED` they are the same images at the size of the vision encoder,
    `images[B V V 3]` uint8.

    Attributes:
      sets: folders of image-text pairs, from prepare-data.
      target_size: S, pixels.
      image_size: V, pixels.
      prompt_length: L, tokens; pairs with a longer prompt are left out.
      max_caption_length: characters; pairs with a longer caption are left out.
      allow_upscale: enlarge stored images that are smaller than S, instead of refusing them.
    """

    sets: tuple[WeightedSet, ...]
    tokenizer: Tokenizer
    condition: Condition
    target_size: int
    image_size: int
    prompt_length: int
    max_caption_length: int
    allow_upscale: bool = False

    def loader(self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1) -> DividedBatches:
        """Return an endless iterator over this process's rows of each batch, resumable after any batch.

        The order is that of stored examples.

        Raises:
          UserError: a set is missing, has no pairs or too small images, or the number of processes does not divide the
            batch size.
        """
        rows_per_process(batch_size, process_count)  # before the sets are read
        opened = [PreparedSet(one.path) for one in self.sets]
        for one in opened:
            self._check(one)
        rows = endless(opened, weights=[one.weight for one in self.sets], seed=seed).map(self.row)
        return DividedBatches(rows, batch_size=batch_size, process_index=process_index, process_count=process_count)

    def row(self, document: Document) -> dict[str, np.ndarray] | None:
        """Return one row of a batch, or None for a document that is left out."""
        pair = caption_and_image(document, self.max_caption_length)
        if pair is None:
            return None
        caption, image = pair
        row = {"target_images": decoder_pixels(image, self.target_size, allow_upscale=self.allow_upscale)}
        if self.condition is Condition.ENCODED:
            return row | {"images": preprocess(image, self.image_size)}
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
        checked: Sequence[int] = range(min(len(documents), _CHECKED_DOCUMENTS))
        if all(self.row(documents[index]) is None for index in checked):
            raise UserError(
                f"None of the first {len(checked)} documents of {documents.path} is an image with a caption of at "
                f"most {self.max_caption_length} characters and {self.prompt_length} tokens."
            )
