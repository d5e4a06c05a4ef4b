"""The text that trains the demo's tokenizer: every kind of document of the world, and instructions of users."""

from collections.abc import Iterator

import numpy as np

from emu_jax.demo.world.alt_text import alt_text
from emu_jax.demo.world.grammar import caption
from emu_jax.demo.world.motion import clip_caption, clip_question, sample_clip
from emu_jax.demo.world.questions import conversation
from emu_jax.demo.world.scenes import choose, sample_scene
from emu_jax.demo.world.stories import sample_in_context, sample_page, sample_storyboard

# Prompts of the released inference code, without special tokens.
INSTRUCTIONS = tuple(
    """\
You will be presented with an image: You will be able to see the image after I provide it to you.
You are a helpful assistant and you will be presented with a video consisting of multiple chronological images:
You will be able to see the video after I provide it to you.
Please answer my questions based on the given image.
Please answer my questions based on the given video.
please provide an accurate and concise description of the given image.
the image depicts a photo of
based on the content of the image and common sense,
please provide an accurate answer consisting of only one word or phrase.
the answer is:
image 1 image 2 image 3 image 4""".splitlines()
)


def corpus(rng: np.random.Generator, n: int) -> Iterator[str]:
    """Yield `n` lines of text of the training split: each kind of document in turn, and an instruction."""

    def lines() -> Iterator[str]:
        while True:
            yield caption(sample_scene(rng), rng)
            yield alt_text(sample_scene(rng), rng)
            yield from (line for turn in conversation(sample_scene(rng), rng) for line in turn)
            clip = sample_clip(rng)
            yield clip_caption(clip, rng)
            yield clip_question(clip, rng).question
            yield from filter(None, sample_storyboard(rng).subtitles)
            yield from sample_in_context(rng).texts
            yield from sample_page(rng).sentences
            yield choose(rng, INSTRUCTIONS)

    for _, line in zip(range(n), lines(), strict=False):
        yield line
