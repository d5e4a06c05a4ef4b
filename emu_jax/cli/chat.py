"""A conversation about pictures and videos, in the terminal.

    python -m emu_jax chat --checkpoint runs/demo
    python -m emu_jax chat --checkpoint Emu-instruct --system image --num-beams 5
    python -m emu_jax chat --base-url http://127.0.0.1:8000/v1

Type a question and press Enter; <photo.jpg> in it shows a picture. /reset begins anew, /quit (or Ctrl-D) ends.
"""

from __future__ import annotations

import dataclasses

from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.generate import SYSTEMS, add_model_arguments, add_text_arguments, check_parts, options, parse_prompt
from emu_jax.data.document import Role
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.generation.chat import Turn, chat_prompt
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.sampling import TextOptions


def main(argv: list[str]) -> None:
    if any(word.partition("=")[0] == "--base-url" for word in argv):
        from emu_jax.cli import remote_chat

        remote_chat.run(argv)
        return
    parser = ArgumentParser(__name__, __doc__)
    add_model_arguments(parser)
    parser.add_argument("--system", choices=sorted(SYSTEMS), default="none", help="a released system message")
    add_text_arguments(parser)
    arguments = parser.parse_args(argv)
    text = options(TextOptions, arguments)
    emu = load(arguments.checkpoint, tokenizer=arguments.tokenizer, dtype=arguments.dtype)
    print("Ask; <photo.jpg> shows a picture, /reset begins anew, /quit ends.")
    turns: list[Turn] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        if line == "/reset":
            turns = []
        elif line:
            try:
                turns = answer(emu, turns, line, text, system=SYSTEMS[arguments.system])
                print(turns[-1].parts[0])
            except UserError as error:  # the conversation goes on without that line
                print(f"error: {error}")


def answer(emu: EmuPipeline, turns: list[Turn], line: str, text: TextOptions, *, system: str = "") -> list[Turn]:
    """The turns with the user's line and the model's answer to it.

    Raises:
      UserError: a file that cannot be read, an image token in the text, or a conversation that is too long.
    """
    parts = parse_prompt(line)
    check_parts(parts)
    asked = [*turns, Turn(Role.USER, tuple(parts))]
    prompt = chat_prompt(asked, tokenizer=emu.tokenizer, system=system)
    said = emu.generate_text(prompt, **dataclasses.asdict(text))
    assert isinstance(said, str)
    return [*asked, Turn(Role.ASSISTANT, (said.strip(),))]
