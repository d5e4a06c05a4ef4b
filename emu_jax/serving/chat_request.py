"""The body of /v1/chat/completions as a checked request: messages, sampling options, images in the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from emu_jax.data.document import Role
from emu_jax.generation.mixed import OpenImage
from emu_jax.serving.errors import ApiError, bad_field
from emu_jax.serving.fields import Fields, json_object
from emu_jax.serving.image_request import SAMPLER_FIELDS, SamplerFields, sampler_fields

_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
_MODALITIES = (["text"], ["image"], ["text", "image"], ["image", "text"])
_MAX_IMAGES = 8
_MAX_STOPS = 4
_MAX_SEED = 2**63 - 1
_MAX_TOP_K = 10**6
_MAX_MIN_TOKENS = 2**20 - 1
_GREEDY = 1e-5  # a smaller temperature or top_p takes the most likely token, as in vLLM

# Fields of OpenAI's protocol that change nothing here.
_WITHOUT_EFFECT = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "safety_identifier",
    "tool_choice", "reasoning_effort", "verbosity", "prediction", "skip_special_tokens",
)  # fmt: skip
_FIELDS = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n",
    "stream", "stream_options", "modalities", "num_beams", "length_penalty", "min_tokens", "repetition_penalty",
    "max_images", "open_image", "prefill", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty",
    "logit_bias", "tools", "functions", "response_format", "audio", *SAMPLER_FIELDS, *_WITHOUT_EFFECT,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MediaPart:
    """An image or a video in a message: its URL, and the field that holds it."""

    kind: str  # "image" or "video"
    url: str
    field: str


@dataclasses.dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[str | MediaPart, ...]


@dataclasses.dataclass(frozen=True)
class ImageFields:
    """Images in the answer: at most `max_images`; `only_image` where text was not requested."""

    max_images: int
    when: OpenImage
    only_image: bool
    sampler: SamplerFields


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A checked body. `options` are fields of `TextOptions`; `max_tokens` None: what the context has room for."""

    model: str | None
    messages: tuple[Message, ...]
    max_tokens: int | None
    options: Mapping[str, Any]
    stop: tuple[str, ...]
    images: ImageFields | None
    prefill: str  # start of the answer, which is not repeated in it
    stream: bool
    include_usage: bool


def parse_chat(body: Any) -> ChatRequest:
    """Check a body.

    Raises:
      ApiError: a field of the wrong type or value, or one that asks for what is not served.
    """
    fields = Fields(json_object(body), known=_FIELDS)
    _refuse_unserved(fields)
    stream = fields.flag("stream")
    return ChatRequest(
        model=fields.text("model"),
        messages=parse_messages(fields.get("messages")),
        max_tokens=_max_tokens(fields),
        options=_text_options(fields),
        stop=fields.texts("stop", most=_MAX_STOPS),
        images=_images(fields),
        prefill=fields.text("prefill", "") or "",
        stream=stream,
        include_usage=_include_usage(fields, stream=stream),
    )


def parse_messages(value: Any) -> tuple[Message, ...]:
    """Check the messages: system messages first, then users and assistants, a user last."""
    if not isinstance(value, list) or not value:
        raise bad_field("messages", "must be a list with at least one message.")
    messages = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))
    roles = [message.role for message in messages]
    first = next((i for i, role in enumerate(roles) if role is not Role.SYSTEM), len(roles))
    if Role.SYSTEM in roles[first:]:
        raise bad_field(f"messages[{first + roles[first:].index(Role.SYSTEM)}].role", "system must come first.")
    if roles[-1] is not Role.USER:
        raise bad_field(f"messages[{len(roles) - 1}].role", "must be user in the last message.")
    return messages


def _message(value: Any, name: str) -> Message:
    message = json_object(value, name)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_field(f"{name}.role", f"must be one of {', '.join(_ROLES)}, not {role!r}.")
    content = message.get("content")
    if content is None and _ROLES[role] is Role.ASSISTANT:
        content = ""
    if isinstance(content, str):
        return Message(_ROLES[role], (content,))
    if not isinstance(content, list):
        raise bad_field(f"{name}.content", "must be a string or a list of parts.")
    parts = tuple(_part(part, f"{name}.content[{i}]") for i, part in enumerate(content))
    if _ROLES[role] is Role.SYSTEM and not all(isinstance(part, str) for part in parts):
        raise bad_field(f"{name}.content", "of a system message must be text.")
    return Message(_ROLES[role], parts)


def _part(value: Any, name: str) -> str | MediaPart:
    part = json_object(value, name)
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise bad_field(f"{name}.text", "must be a string.")
        return part["text"]
    if kind not in ("image_url", "video_url"):
        raise bad_field(f"{name}.type", f"must be text, image_url or video_url, not {kind!r}.")
    url = part.get(kind)
    if isinstance(url, dict):
        url = url.get("url")
    if not isinstance(url, str) or not url:
        raise bad_field(f"{name}.{kind}", 'must be {"url": "data:..."}.')
    return MediaPart(kind.removesuffix("_url"), url, f"{name}.{kind}.url")


def _max_tokens(fields: Fields) -> int | None:
    both = [fields.integer(name, least=1) for name in ("max_completion_tokens", "max_tokens")]
    return both[0] if both[0] is not None else both[1]


def _text_options(fields: Fields) -> dict[str, Any]:
    """Fields of `TextOptions`. The default is the most likely token, or temperature 1 if top_p or top_k is given."""
    top_p = fields.number("top_p", 1.0, least=0, most=1)
    top_k = max(fields.integer("top_k", 0, least=-1, most=_MAX_TOP_K), 0)  # vLLM's -1 is all
    filters = top_k > 0 or top_p < 1
    temperature = fields.number("temperature", 1.0 if filters else 0.0, least=0, most=100)
    if temperature < _GREEDY or top_p < _GREEDY:
        temperature, top_p, top_k = 0.0, 1.0, 0
    num_beams = fields.integer("num_beams", 1, least=1)
    if num_beams > 1 and temperature > 0:
        raise bad_field("num_beams", "must be 1 with a temperature above 0: beam search does not sample.")
    return {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": fields.integer("seed", least=-_MAX_SEED, most=_MAX_SEED),
        "num_beams": num_beams,
        "length_penalty": fields.number("length_penalty", 0.0, least=-10, most=10),
        # Hugging Face's lengths count `<s>`.
        "min_length": fields.integer("min_tokens", 0, least=0, most=_MAX_MIN_TOKENS) + 1,
        "repetition_penalty": fields.number("repetition_penalty", 1.0, least=0.01, most=100),
    }


def _images(fields: Fields) -> ImageFields | None:
    modalities = fields.get("modalities")
    if modalities is not None and modalities not in _MODALITIES:
        raise bad_field("modalities", 'must be ["text"], ["image"] or ["text", "image"].')
    sampler = sampler_fields(fields)
    choices = [when.value for when in OpenImage]
    only_image = modalities == ["image"]
    when = OpenImage(fields.choice("open_image", choices, OpenImage.ALTERNATE.value))
    most = fields.integer("max_images", 1, least=1, most=_MAX_IMAGES)
    if not modalities or "image" not in modalities:
        return None
    return ImageFields(
        max_images=1 if only_image else most,
        when=OpenImage.FIRST if only_image else when,
        only_image=only_image,
        sampler=sampler,
    )


def _include_usage(fields: Fields, *, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise bad_field("stream_options", "is for streams only; set stream to true.")
    return Fields(json_object(options, "stream_options"), known=("include_usage",)).flag("include_usage")


def _refuse_unserved(fields: Fields) -> None:
    for name in ("frequency_penalty", "presence_penalty"):
        fields.refuse(name, unless=(0,), why="is not served; use repetition_penalty")
    for name in ("tools", "functions", "logit_bias"):
        fields.refuse(name, unless=([], {}), why="is not served")
    fields.refuse("n", unless=(1,), why="must be 1")
    fields.refuse("logprobs", unless=(False,), why="is not served")
    fields.refuse("top_logprobs", unless=(0,), why="is not served")
    fields.refuse("audio", unless=(), why="is not served")
    form = fields.get("response_format")
    if form is not None and json_object(form, "response_format").get("type") != "text":
        raise ApiError(400, "response_format must be of type text.", param="response_format")
