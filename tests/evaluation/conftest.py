"""A tiny Emu with random weights that reads prompts as long as the release's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.model_directory import boxed_shapes, save_model
from emu_jax.data.chat_layout import SYSTEM_IMAGE, SYSTEM_VIDEO
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.evaluation.prompts import VQA_REQUEST
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.models.config import EmuConfig
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.specs import unbox
from tests.evaluation.wordnet import write_wordnet

LINES = [SYSTEM_IMAGE, SYSTEM_VIDEO, VQA_REQUEST, "a red dog on a small table. yes. no. unanswerable"]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(LINES * 4, path, vocab_size=400)
    return path


@pytest.fixture(scope="session")
def tiny(tokenizer_file: Path) -> EmuPipeline:
    """32 x 32 pixels, N = 4, width 128, random weights, a context of 512 tokens."""
    from emu_jax.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_file)
    config = emu_tiny(vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_length=512))
    return EmuPipeline(config, random_params(config), tokenizer=tokenizer)


def random_params(config: EmuConfig) -> dict[str, Any]:
    """Parameters that make every part matter; faster than compiling the initializers."""
    rng = np.random.default_rng(3)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.normal(scale=0.1, size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, unbox(boxed_shapes(config)))


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nltk finds a WordNet of a few nouns."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(write_wordnet(tmp_path / "nltk_data"))])
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))


@pytest.fixture(scope="session")
def model_directory(tiny: EmuPipeline, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` as `--checkpoint` takes it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, tiny.config, tiny.params, tokenizer=tokenizer_file)
    return folder
