"""Tokens of a prompt and of an answer: one count for the prompt, its limit and the reported usage."""

import dataclasses

from emu_jax.generation.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class PromptUsage:
    """Tokens of a prompt; `image_tokens` of them belong to images (`[IMG]`, N times `<image>`, `[/IMG]`: 34)."""

    tokens: int
    image_tokens: int


@dataclasses.dataclass(frozen=True)
class AnswerUsage:
    """Tokens of an answer, `</s>` included where it came; `image_tokens` of them belong to images."""

    tokens: int
    image_tokens: int


def image_tokens(images: int, *, num_image_tokens: int) -> int:
    """Return the tokens of that many images: N embeddings between `[IMG]` and `[/IMG]`."""
    return images * (num_image_tokens + 2)


def prompt_usage(prompt: Prompt, *, num_image_tokens: int, opens_image: bool = False) -> PromptUsage:
    """Count a prompt. The `[IMG]` at the end of one that `opens_image` belongs to the answer's image."""
    of_images = image_tokens(len(prompt.images), num_image_tokens=num_image_tokens)
    return PromptUsage(tokens=len(prompt.tokens) - opens_image, image_tokens=of_images)


def answer_usage(text_tokens: int, images: int, *, num_image_tokens: int) -> AnswerUsage:
    """Count an answer of text tokens and complete images."""
    of_images = image_tokens(images, num_image_tokens=num_image_tokens)
    return AnswerUsage(tokens=text_tokens + of_images, image_tokens=of_images)
