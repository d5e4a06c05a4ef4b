"""Answers in OpenAI's JSON: chat completions and their chunks, images, usage."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from emu_jax.serving.answers import End, ImagePiece, Piece, TextPiece
from emu_jax.serving.usage import AnswerUsage, PromptUsage


@dataclasses.dataclass(frozen=True)
class Reply:
    """The fields that all parts of one answer repeat."""

    model: str
    prompt: PromptUsage
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def completion(self, found: Sequence[Piece], end: End, answer: AnswerUsage, *, parts: bool) -> dict[str, Any]:
        """Return a chat completion; its content is a list of `parts` where images were requested, else a string."""
        content = (
            content_parts(found) if parts else "".join(piece.text for piece in found if isinstance(piece, TextPiece))
        )
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": None,
            "finish_reason": end.reason,
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": self.usage(answer, end)}

    def chunk(self, delta: dict[str, Any], *, finish: str | None = None, modality: str = "text") -> dict[str, Any]:
        """Return one chunk of a stream; `modality` as vllm-omni reports it."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice], "modality": modality}

    def usage_chunk(self, answer: AnswerUsage, end: End) -> dict[str, Any]:
        """Return the last chunk of a stream whose client requested the usage."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": self.usage(answer, end)}

    def usage(self, answer: AnswerUsage, end: End) -> dict[str, Any]:
        """Return the tokens of prompt and answer, those of images and those found in a cache among them."""
        return {
            "prompt_tokens": self.prompt.tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": self.prompt.tokens + answer.tokens,
            "prompt_tokens_details": {"image_tokens": self.prompt.image_tokens, "cached_tokens": end.reused_tokens},
            "completion_tokens_details": {"image_tokens": answer.image_tokens, "reasoning_tokens": 0},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def content_parts(found: Sequence[Piece]) -> list[dict[str, Any]]:
    """Return texts and images in order as content parts; neighboring texts are one part."""
    parts: list[dict[str, Any]] = []
    for piece in found:
        if isinstance(piece, TextPiece):
            if parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += piece.text
            else:
                parts.append({"type": "text", "text": piece.text})
        elif isinstance(piece, ImagePiece):
            parts += [image_part(data) for data in piece.files]
    return parts


def image_part(data: bytes) -> dict[str, Any]:
    """Return a PNG file as a content part."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def images_response(
    files: Sequence[bytes], *, size: tuple[int, int], prompt: PromptUsage, answer: AnswerUsage
) -> dict[str, Any]:
    """Return the answer of the image routes; `size` is `(height, width)`."""
    return {
        "created": int(time.time()),
        "data": [{"b64_json": base64.b64encode(data).decode()} for data in files],
        "output_format": "png",
        "size": f"{size[1]}x{size[0]}",
        "usage": {
            "input_tokens": prompt.tokens,
            "output_tokens": answer.tokens,
            "total_tokens": prompt.tokens + answer.tokens,
            "input_tokens_details": {
                "image_tokens": prompt.image_tokens,
                "text_tokens": prompt.tokens - prompt.image_tokens,
            },
        },
    }


def event(value: Any) -> bytes:
    """Return a server-sent event with JSON, or `[DONE]`."""
    data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n".encode()
