"""The token layout of a chat, the same for training sequences and for prompts.

    system [USER]: question [ASSISTANT]: answer</s> [USER]: ...

A tokenizer without `[USER]` and `[ASSISTANT]` (one for pretraining) encodes them as plain text.
"""

import dataclasses
import enum
from collections.abc import Iterable
from typing import TypeVar

from emu_jax.data.document import Role
from emu_jax.data.tokenizer import ASSISTANT, USER, Tokenizer

# The system messages of Emu-I, as released; their [IMG] and [/IMG] are the special tokens.
SYSTEM_IMAGE = (
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image after I provide "
    "it to you. Please answer my questions based on the given image."
)
SYSTEM_VIDEO = (
    "You are a helpful assistant and you will be presented with a video consisting of multiple chronological images: "
    "[IMG]ImageContent[/IMG]. You will be able to see the video after I provide it to you. Please answer my questions "
    "based on the given video."
)


class ChatStyle(enum.Enum):
    """Differences between the layout of the training data and the prompts of the release."""

    TRAINING = "training"  # consecutive texts are joined by a space
    RELEASE = "release"  # consecutive texts are joined as they are; a user turn that is one image ends with `</s>`


MediaT = TypeVar("MediaT")


@dataclasses.dataclass(frozen=True)
class TokenSpan:
    """A run of tokens; with `loss` they count as labels of the text loss."""

    ids: list[int]
    loss: bool = True


def system_tokens(message: str, *, tokenizer: Tokenizer) -> list[TokenSpan]:
    """Return the tokens of a system message; none for an empty one.

    Only the two released messages may contain special tokens: any other text may come from an untrusted source.
    """
    message = message.strip()
    if not message:
        return []
    special_tokens = message in (SYSTEM_IMAGE, SYSTEM_VIDEO)
    return [TokenSpan(tokenizer.encode(message, special_tokens=special_tokens), loss=False)]


def turn_tokens(
    role: Role, parts: Iterable[str | MediaT], *, tokenizer: Tokenizer, style: ChatStyle = ChatStyle.TRAINING
) -> list[TokenSpan | MediaT]:
    """Lay out one turn of the user or the assistant.

    Strings are text and become `TokenSpan`s; consecutive ones are joined as `style` says. Everything else (images,
    videos) is returned unchanged, in order. A turn of the assistant ends with `</s>`. Only the words of the assistant
    and its `</s>` have a loss, not the opening `[ASSISTANT]:`.

        turn_tokens(Role.USER, [image, "a cat?"])  ->  [USER] ":"  image  "a cat?"
    """
    parts = list(parts)
    is_answer, release = role is Role.ASSISTANT, style is ChatStyle.RELEASE
    spans: list[TokenSpan | MediaT] = []
    texts: list[str] = []
    is_open = False

    def end_text() -> None:
        nonlocal is_open
        text = ("" if release else " ").join(texts).strip()
        texts.clear()
        if not is_open:
            spans.extend(open_turn(role, text, tokenizer=tokenizer))
        elif text:
            spans.append(TokenSpan(tokenizer.encode(text), loss=is_answer))
        is_open = True

    for part in parts:
        if isinstance(part, str):
            texts += [part if release else part.strip()] if part.strip() else []
            continue
        if texts or not is_open:
            end_text()
        spans.append(part)
    if texts or not is_open:
        end_text()
    only_image = len(parts) == 1 and not isinstance(parts[0], str)
    if is_answer or (release and only_image):
        spans.append(TokenSpan([tokenizer.eos_id], loss=is_answer))
    return spans


def open_turn(role: Role, text: str = "", *, tokenizer: Tokenizer) -> list[TokenSpan]:
    """Return the tokens of `[USER]: text` or `[ASSISTANT]: text`, without the `</s>` of an answer.

    With an empty text, this is the end of a prompt that the model continues with its answer.
    """
    is_answer = role is Role.ASSISTANT
    special = tokenizer.assistant_id if is_answer else tokenizer.user_id
    opening = ":" if special is not None else f"{ASSISTANT if is_answer else USER}:"
    opening_ids = tokenizer.encode(opening)
    ids = tokenizer.encode(f"{opening} {text}") if text else opening_ids
    if ids[: len(opening_ids)] != opening_ids:  # the tokenizer merged the end of the opening with the text
        ids = opening_ids + tokenizer.encode(text)
    spans = [TokenSpan([*([] if special is None else [special]), *opening_ids], loss=False)]
    text_ids = ids[len(opening_ids) :]
    return [*spans, TokenSpan(text_ids, loss=is_answer)] if text_ids else spans
