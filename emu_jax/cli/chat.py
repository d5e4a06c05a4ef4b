"""Hold a conversation about images and videos in the terminal.

    python -m emu_jax chat --checkpoint runs/demo
    python -m emu_jax chat --checkpoint Emu-instruct --system image --num-beams 5
    python -m emu_jax chat --base-url http://127.0.0.1:8000/v1

Type a question and press Enter; <photo.jpg> in it inserts an image. /reset starts a new conversation, /quit (or Ctrl-D)
ends.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.generate import (
    SYSTEMS,
    add_chat_arguments,
    add_text_arguments,
    note_without_chat_tokens,
    options,
    system_message,
)
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError
from emu_jax.generation.options import TextOptions

if TYPE_CHECKING:
    from emu_jax.generation.chat import Turn
    from emu_jax.generation.pipeline import EmuPipeline


def main(argv: list[str]) -> None:
    """Run the command."""
    if any(word.partition("=")[0] == "--base-url" for word in argv):
        from emu_jax.cli import remote_chat

        remote_chat.run(argv)
        return
    parser = ArgumentParser(__name__, __doc__)
    parser.add_model_arguments()
    parser.add_argument("--system", choices=SYSTEMS, default="none", help="released system message (default: none)")
    add_chat_arguments(parser)
    add_text_arguments(parser)
    arguments = parser.parse_args(argv)
    text = options(TextOptions, arguments)

    with heavy_imports():
        from emu_jax.cli.loading import load_emu

    emu = load_emu(arguments)
    system = system_message(arguments.system)
    note_without_chat_tokens(emu.tokenizer)
    print("Type a question; <photo.jpg> inserts an image, /reset starts a new conversation, /quit ends.")
    turns: list[Turn] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            print("error: the line is not valid UTF-8")
            continue
        if line == "/quit":
            return
        if line == "/reset":
            turns = []
        elif line:
            try:
                turns = answer(emu, turns, line, text, system=system, style=arguments.chat_style)
                print(turns[-1].parts[0])
            except UserError as error:  # the conversation continues without this line
                print(f"error: {error}")


def answer(
    emu: EmuPipeline, turns: list[Turn], line: str, text: TextOptions, *, system: str = "", style: str = "training"
) -> list[Turn]:
    """Return the turns with the user's line and the model's answer.

    Raises:
      UserError: a file cannot be read, the line contains an image token, or the conversation is too long.
    """
    from emu_jax.cli.prompts import check_parts, parse_prompt
    from emu_jax.data.document import Role
    from emu_jax.generation.chat import ChatStyle, Turn, chat_prompt

    parts = parse_prompt(line)
    check_parts(parts)
    conversation = [*turns, Turn(Role.USER, tuple(parts))]
    prompt = chat_prompt(conversation, tokenizer=emu.tokenizer, system=system, style=ChatStyle(style))
    generated = emu.generate_text(prompt, **dataclasses.asdict(text))
    assert isinstance(generated, str)
    return [*conversation, Turn(Role.ASSISTANT, (generated.strip(),))]
