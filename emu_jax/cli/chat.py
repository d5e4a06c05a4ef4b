"""Hold a conversation about images and videos, in the terminal or in a web page.

    python -m emu_jax chat --checkpoint runs/demo
    python -m emu_jax chat --checkpoint Emu-instruct --system image --num-beams 5
    python -m emu_jax chat --checkpoint Emu-instruct --web
    python -m emu_jax chat --base-url http://127.0.0.1:8000/v1

Type a question; its answer is printed as it is generated, and Ctrl-C stops it. <photo.jpg> in a line inserts an image.

    /image FILE, /video FILE    insert a file into the next question
    /draw TEXT                  answer with an image
    /edit FILE TEXT             an image from an image and an instruction
    /system TEXT                set the system message, and start again
    /seed N                     of the next answers
    /save FILE.md               write the conversation as Markdown, with its images next to it
    /reset, /quit               start again, end

The model's programs are compiled first, and none later. Images of answers are saved and their paths printed; terminals
with kitty's, iTerm2's or the sixel protocol show them. Needs for --web: pip install 'emu_jax[chat]'
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_jax.cli.arguments import ArgumentParser, at_least
from emu_jax.cli.generate import SYSTEMS, add_chat_arguments, note_without_chat_tokens, system_message
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError
from emu_jax.generation.options import ImageOptions, TextOptions
from emu_jax.io.files import read_text

if TYPE_CHECKING:
    from emu_jax.serving.client import Client

_WEB_SLOTS = 4  # answers at a time of a model that a web page shows
_WEB_BEAMS = 5  # the most beams that the web page offers
_REQUEST_OPTIONS = (
    ("max_tokens", int, "text tokens of an answer (default: what the context has left)"),
    ("temperature", float, "above 0: sample the tokens (default: 0, the most likely token)"),
    ("top_k", int, "sample from the k most likely tokens"),
    ("top_p", float, "sample from the most likely tokens with this total probability"),
    ("num_beams", int, "beams of beam search"),
    ("length_penalty", float, "of beam search"),
    ("min_tokens", int, "minimum number of text tokens"),
    ("repetition_penalty", float, "above 1: repeated tokens are less likely"),
    ("seed", int, "of sampled tokens and of the noise of images (default: 0)"),
    ("num_inference_steps", int, "of the sampler of images"),
    ("guidance_scale", float, "of images"),
    ("prefill", str, "start of each answer, such as 'the answer is:'; not printed"),
)


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = parser().parse_args(argv)
    check(arguments)
    options = {name: value for name, _, _ in _REQUEST_OPTIONS if (value := getattr(arguments, name)) is not None}
    options = {"temperature": 0.0, "seed": 0} | options

    with contextlib.closing(connect(arguments) if arguments.base_url else load(arguments)) as client:
        options["model"] = arguments.model or client.models()[0]
        if arguments.web:
            from emu_jax.chat.web import WebOptions, serve_page

            web = WebOptions(arguments.host, arguments.port, arguments.max_upload_mb, max_beams=_WEB_BEAMS)
            serve_page(client, web, options)
        else:
            talk(client, arguments, options)


def talk(client: Client, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Hold the conversation in the terminal."""
    import platformdirs

    from emu_jax.chat.session import Session
    from emu_jax.chat.terminal import Terminal, image_protocol, read_line

    print(f"{options['model']}: type a question; <photo.jpg> inserts an image, /reset starts again, /quit ends.")
    session = Session(client, arguments.output, options)
    history = Path(platformdirs.user_state_dir("emu_jax"), "chat_history")
    Terminal(session, image_protocol()).run(read_line(history))


def connect(arguments: argparse.Namespace) -> Client:
    """Return the client of the server of --base-url."""
    from emu_jax.serving.client import ServerClient

    return ServerClient(arguments.base_url, api_key=_key(arguments.api_key_file))


def load(arguments: argparse.Namespace) -> Client:
    """Load the model of --checkpoint and compile its programs."""
    with heavy_imports():
        import jax

        from emu_jax.cli.loading import load_emu
        from emu_jax.generation.chat import ChatStyle
        from emu_jax.serving.local import LocalClient

    emu = load_emu(arguments)
    if jax.process_count() > 1:
        raise UserError("chat runs in one process; on several, start `serve` on them and use chat --base-url URL.")
    note_without_chat_tokens(emu.tokenizer)
    client = LocalClient(
        emu,
        name=arguments.checkpoint.resolve().name,
        system=system_message(arguments.system),
        style=ChatStyle(arguments.chat_style),
        slots=_WEB_SLOTS if arguments.web else 1,
        max_beams=_WEB_BEAMS if arguments.web else (arguments.num_beams or 1),
    )
    print("compiling ...", flush=True)
    client.wait_until_ready()
    return client


def parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(__name__, __doc__)
    parser.add_model_arguments(required=False)
    parser.add_argument("--base-url", metavar="URL", help="chat with this server instead, as http://HOST:8000/v1")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key for --base-url")
    parser.add_argument("--model", help="name of the model (default: the first)")
    parser.add_argument("--system", choices=SYSTEMS, default="none", help="released system message (default: none)")
    add_chat_arguments(parser)
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="folder of the images (default: here)"
    )
    group = parser.add_argument_group("answers")
    for name, type_, doc in _REQUEST_OPTIONS:
        flags = [f"--{name.replace('_', '-')}", *(["--max-new-tokens"] if name == "max_tokens" else [])]
        group.add_argument(*flags, dest=name, type=type_, help=doc)
    web = parser.add_argument_group("web page")
    web.add_argument("--web", action="store_true", help="show a web page instead of the terminal")
    web.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    web.add_argument(
        "--port", type=at_least(0, at_most=65_535), default=7860, metavar="N", help="0: a free one (default: 7860)"
    )
    web.add_argument("--max-upload-mb", type=at_least(1), default=20, metavar="N", help="of one file (default: 20)")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for arguments that exclude each other, or for a missing package."""
    if (arguments.checkpoint is None) == (arguments.base_url is None):
        raise UserError("Name a model with --checkpoint DIR, or a server with --base-url URL.")
    if arguments.base_url and arguments.system != "none":
        raise UserError("--system is for --checkpoint; with --base-url, type /system TEXT.")
    if arguments.base_url and arguments.chat_style != "training":
        raise UserError("--chat-style is for --checkpoint; with --base-url, it is an option of serve.")
    _check_options(arguments)
    if arguments.web and importlib.util.find_spec("gradio") is None:
        raise UserError("chat --web needs gradio; install it with: pip install 'emu_jax[chat]'")


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError for an option of answers outside its range."""
    names = {"max_tokens": "max_new_tokens", "min_tokens": "min_length", "num_inference_steps": "steps"}
    given = {
        names.get(name, name): value
        for name, _, _ in _REQUEST_OPTIONS
        if (value := getattr(arguments, name)) is not None
    }
    for cls in (TextOptions, ImageOptions):
        cls(**{field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given})


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    words = read_text(path).split()
    if not words:
        raise UserError(f"The key file {path} holds no key.")
    return words[0]
