"""`python -m emu_jax evaluate`: scores of a model directory on the console, as JSON and as a page."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.cli import evaluate
from emu_jax.data.synthetic.corpus import corpus
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.errors import UserError
from emu_jax.models.emu import Emu
from emu_jax.models.presets import emu_tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An untrained model without a visual decoder."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "small.model"
    tokenizer = train_tokenizer(corpus(np.random.default_rng(0), 300), path, vocab_size=400)
    config = emu_tiny(vocab_size=tokenizer.vocab_size)
    model = Emu(config, image_token_id=tokenizer.image_token_id)
    images = jnp.zeros((1, 1, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32), images)["params"]
    save_model(folder / "model", config, params, tokenizer=path)
    return folder / "model"


def test_scores_are_printed_and_written(directory, tmp_path, capsys):
    output, page = tmp_path / "scores.json", tmp_path / "scores.html"
    words = ["--checkpoint", str(directory), "--task", "drawn-world", "--num-scenes", "3", "--num-frames", "2"]
    evaluate.main([*words, "--output", str(output), "--report", str(page)])
    metrics = json.loads(output.read_text())
    assert metrics["num_scenes"]["caption_exact"] == 3
    assert metrics["untrained"]["num_scenes"]["caption_exact"] == 1
    assert metrics["settings"]["num_frames"] == 2
    assert "text_to_embedding_color_and_shape" in metrics
    assert "text_to_image_color_and_shape" not in metrics, "there is no decoder"
    assert "caption_exact" in capsys.readouterr().out
    assert "Captions of one object" in page.read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--checkpoint", "nowhere"], "There is no model at nowhere"),
        (["--checkpoint", "nowhere", "--num-scenes", "0"], "num_scenes must be at least 1"),
        (["--checkpoint", "nowhere", "--task", "chess"], "invalid choice: 'chess'"),
        ([], "--checkpoint"),
    ],
)
def test_mistakes_are_one_line(words, line):
    with pytest.raises(UserError, match=line) as caught:
        evaluate.main(words)
    assert "\n" not in str(caught.value)
