"""Prompts of a conversation, token for token as instruction tuning lays chats out (`data.sequence`, CHAT)."""

import dataclasses
from collections.abc import Iterable

from emu_jax.data.document import Role
from emu_jax.data.sequence import SYSTEM_IMAGE, SYSTEM_VIDEO
from emu_jax.data.tokenizer import ASSISTANT, USER, Tokenizer
from emu_jax.generation.prompt import Part, Tokens, is_file_name

__all__ = ["SYSTEM_IMAGE", "SYSTEM_VIDEO", "Turn", "chat_prompt"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side said: texts, images and videos in order."""

    role: Role
    parts: tuple[Part, ...]


def chat_prompt(turns: Iterable[Turn], *, tokenizer: Tokenizer, system: str = "") -> list[Part]:
    """`system [USER]: ... [ASSISTANT]: ... </s> [USER]: ... [ASSISTANT]:`, ready for an answer.

    A tokenizer without `[USER]` and `[ASSISTANT]` gets them as plain text. Of all texts only the two released system
    messages may hold special tokens.
    """
    prompt: list[Part] = []
    if system:
        special = system in (SYSTEM_IMAGE, SYSTEM_VIDEO)
        prompt.append(Tokens(tuple(tokenizer.encode(system.strip(), special_tokens=special))))
    for turn in turns:
        prompt += _turn(turn, tokenizer)
        if turn.role is Role.ASSISTANT:
            prompt.append(Tokens((tokenizer.eos_id,)))
    return prompt + _opening(Role.ASSISTANT, "", tokenizer)


def _turn(turn: Turn, tokenizer: Tokenizer) -> list[Part]:
    laid: list[Part] = []
    texts: list[str] = []
    opened = False

    def flush() -> None:
        nonlocal opened
        text = " ".join(texts)
        texts.clear()
        if not opened:
            laid.extend(_opening(turn.role, text, tokenizer))
        elif text:
            laid.append(Tokens(tuple(tokenizer.encode(text))))
        opened = True

    for part in turn.parts:
        if isinstance(part, str) and not is_file_name(part):
            texts += [part.strip()] if part.strip() else []
            continue
        if texts or not opened:
            flush()
        laid.append(part)
    if texts or not opened:
        flush()
    return laid


def _opening(role: Role, text: str, tokenizer: Tokenizer) -> list[Part]:
    special = tokenizer.user_id if role is Role.USER else tokenizer.assistant_id
    opening = ":" if special is not None else f"{USER if role is Role.USER else ASSISTANT}:"
    opening_ids = tokenizer.encode(opening)
    ids = tokenizer.encode(f"{opening} {text}") if text else opening_ids
    if ids[: len(opening_ids)] != opening_ids:  # the opening melted into the text
        ids = opening_ids + tokenizer.encode(text)
    return [Tokens((*([] if special is None else [special]), *ids))]
