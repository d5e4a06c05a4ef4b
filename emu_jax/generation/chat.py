"""Prompts of a conversation, with the same tokens as in instruction tuning (`data.chat_layout`)."""

import dataclasses
from collections.abc import Iterable

from emu_jax.data.chat_layout import (
    SYSTEM_IMAGE,
    SYSTEM_VIDEO,
    ChatStyle,
    TokenSpan,
    open_turn,
    system_tokens,
    turn_tokens,
)
from emu_jax.data.document import Role
from emu_jax.data.media_paths import named_file
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.generation.prompt import Part, Tokens

__all__ = ["SYSTEM_IMAGE", "SYSTEM_VIDEO", "ChatStyle", "Turn", "chat_prompt"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """The texts, images and videos of one turn, in order."""

    role: Role
    parts: tuple[Part, ...]


def chat_prompt(
    turns: Iterable[Turn],
    *,
    tokenizer: Tokenizer,
    system: str = "",
    style: ChatStyle = ChatStyle.TRAINING,
    prefill: str = "",
) -> list[Part]:
    """Return `system [USER]: ... [ASSISTANT]: ...</s> [USER]: ... [ASSISTANT]: prefill`, which the model continues.

    With `ChatStyle.RELEASE` the prompt has the tokens of the released scripts. `prefill` is the start of the answer, as
    "the answer is:" in the release's evaluation on VQAv2; what is generated does not repeat it.

    A string of the user that names an image or a video is a file, as in `build_prompt`. A string of the assistant is
    always text, because it may be the output of a model. All text becomes tokens here, and only the two released system
    messages may contain special tokens.
    """
    spans: list[TokenSpan | Part] = [*system_tokens(system, tokenizer=tokenizer)]
    for turn in turns:
        parts = [_file_or_text(part) for part in turn.parts] if turn.role is Role.USER else turn.parts
        spans += turn_tokens(turn.role, parts, tokenizer=tokenizer, style=style)
    spans += open_turn(Role.ASSISTANT, prefill.strip(), tokenizer=tokenizer)
    return [Tokens(tuple(span.ids)) if isinstance(span, TokenSpan) else span for span in spans]


def _file_or_text(part: Part) -> Part:
    return (named_file(part) or part) if isinstance(part, str) else part
