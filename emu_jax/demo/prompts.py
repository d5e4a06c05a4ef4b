"""Prompts of the synthetic world: the same tokens as in the training documents, up to the start of the answer.

caption      <s> [IMG] <image> [/IMG]                                          | a large red circle ...
image        <s> a large red circle ... [IMG]                                  | 32 embeddings
question     <s> [USER] : [IMG] <image> [/IMG] what color is it? [ASSISTANT] : | red </s>
in context   <s> image 1 [IMG] <image> [/IMG] image 2 [IMG] <image> [/IMG] the object of ... [IMG] | embeddings
"""

from collections.abc import Iterable

import numpy as np

from emu_jax.data.document import Role
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.demo.world.stories import InContextTask
from emu_jax.generation.chat import Turn, chat_prompt
from emu_jax.generation.prompt import Part

Prompt = list[Part]


def question_prompt(images: Iterable[np.ndarray], question: str, *, tokenizer: Tokenizer) -> Prompt:
    """Return the prompt of a user's question about images, up to the start of the assistant's answer."""
    return chat_prompt([Turn(Role.USER, (*images, question))], tokenizer=tokenizer)


def in_context_prompt(task: InContextTask, first: np.ndarray, second: np.ndarray) -> Prompt:
    """Return two images with their names, and the instruction; the target image follows."""
    return [task.texts[0], first, task.texts[1], second, task.texts[2]]
