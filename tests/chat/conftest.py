"""One client of a tiny Emu in this process, for all tests of the chat."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.serving.local import LocalClient
from tests.serving.conftest import MODEL, emu  # noqa: F401  (a fixture)

CONTEXT = 256  # for eight turns


@pytest.fixture(scope="session")
def local(emu: EmuPipeline) -> Iterator[LocalClient]:  # noqa: F811
    config = dataclasses.replace(emu.config, decoder=dataclasses.replace(emu.config.decoder, max_length=CONTEXT))
    longer = EmuPipeline(config, emu.params, tokenizer=emu.tokenizer, visual_decoder=emu.visual_decoder)
    client = LocalClient(longer, name=MODEL, slots=2, max_beams=2)
    client.wait_until_ready()
    yield client
    client.close()
