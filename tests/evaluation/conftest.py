"""A tiny Emu with random weights that reads prompts as long as the release's, and a tiny CLIP."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as WordTokenizer
from tokenizers import models, pre_tokenizers, processors

from emu_jax.checkpoints.model_directory import boxed_shapes, save_model
from emu_jax.convert.clip_table import clip_table
from emu_jax.convert.visual_decoder import save_visual_decoder
from emu_jax.data.chat_layout import SYSTEM_IMAGE, SYSTEM_VIDEO
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.diffusion.clip_vision import ClipVisionConfig
from emu_jax.evaluation.image_metrics.clip_text import ClipTextConfig, clip_text_table
from emu_jax.evaluation.prompts import VQA_REQUEST
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.models.config import EmuConfig
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.specs import unbox
from tests.evaluation.layouts import WORDS
from tests.evaluation.wordnet import write_wordnet
from tests.generation.conftest import tiny_visual_decoder

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
    """`tiny` with a visual decoder of 8 x 8 pixels, as `--checkpoint` takes it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, tiny.config, tiny.params, tokenizer=tokenizer_file)
    save_visual_decoder(tiny_visual_decoder(tiny.config.decoder.width), folder / "visual_decoder")
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in the layout of transformers."""
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    words = [*WORDS, "a", "[START]", "[END]"]
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 8}
    vision = {**tower, "image_size": 16, "patch_size": 4}
    config = {"projection_dim": 12, "text_config": text, "vision_config": vision}
    rng = np.random.default_rng(0)
    draw = lambda row: {n: rng.normal(scale=0.3, size=row.torch_shape).astype(np.float32) for n in row.names}
    tensors = {k: v for row in clip_text_table(ClipTextConfig.from_transformers(config)) for k, v in draw(row).items()}
    for row in clip_table(ClipVisionConfig.from_transformers(config)):
        prefix = "" if row.torch.startswith("visual_projection") else "vision_model."
        tensors |= {prefix + name: value for name, value in draw(row).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 16}, "crop_size": 16}))
    tokenizer = WordTokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[START]", len(words) - 2), ("[END]", len(words) - 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[START] $A [END]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
