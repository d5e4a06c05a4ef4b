"""Prompts of a conversation, with the same tokens as chats in instruction tuning (`data.chat_layout`)."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from emu_jax.data.chat_layout import SYSTEM_IMAGE, SYSTEM_VIDEO, TokenSpan, open_turn, system_tokens, turn_tokens
from emu_jax.data.document import Role
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.generation.prompt import Part, Tokens, is_file_name

__all__ = ["SYSTEM_IMAGE", "SYSTEM_VIDEO", "Turn", "chat_prompt"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """The texts, images and videos of one speaker, in order."""

    role: Role
    parts: tuple[Part, ...]


def chat_prompt(turns: Iterable[Turn], *, tokenizer: Tokenizer, system: str = "") -> list[Part]:
    """Return `system [USER]: ... [ASSISTANT]: ... </s> [USER]: ... [ASSISTANT]:`, ready for an answer.

    A tokenizer without `[USER]` and `[ASSISTANT]` encodes them as plain text. Of all texts, only the two released
    system messages may contain special tokens.
    """
    spans: list[TokenSpan | Part] = [*system_tokens(system, tokenizer=tokenizer)]
    for turn in turns:
        parts = [Path(p.strip()) if isinstance(p, str) and is_file_name(p) else p for p in turn.parts]
        spans += turn_tokens(turn.role, parts, tokenizer=tokenizer)
    spans += open_turn(Role.ASSISTANT, tokenizer=tokenizer)
    return [Tokens(tuple(span.ids)) if isinstance(span, TokenSpan) else span for span in spans]
