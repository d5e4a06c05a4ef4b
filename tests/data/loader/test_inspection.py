"""The page displays each document, image and mask of the batches, and escapes HTML in the data."""

import re

import pytest

from emu_jax.cli.inspect_data import main
from emu_jax.data.batch import BatchConfig
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.data.loader.inspection import page
from emu_jax.data.loader.pipeline import make_loader
from emu_jax.errors import UserError
from emu_jax.reporting.histogram import histogram


@pytest.fixture
def loader(sets, small_tokenizer):
    config = DataConfig(
        sets=tuple(SetConfig(path=str(path), name=f"<{name}>") for name, path in sets.items()),
        batch=BatchConfig(batch_size=3, length=96, max_images=4, image_size=8),
        num_image_tokens=2,
        pool=16,
        prefetch=0,
        predict_boi=True,
    )
    return make_loader(config, tokenizer=small_tokenizer, seed=0)


def test_all_parts_of_the_rows_are_displayed(loader, small_tokenizer):
    batches = [next(loader), next(loader)]
    text = page(batches, tokenizer=small_tokenizer, source_names=loader.source_names)
    assert text.count("data:image/png;base64,") == sum(int(b["num_images"].sum()) for b in batches)
    assert len(re.findall(r'class="token[^"]* label" title', text)) == sum(b["text_loss_mask"].sum() for b in batches)
    regressed = sum(b["regression_mask"].sum() for b in batches) / 3  # N + 1 positions each
    assert text.count('class="image regression" title') == regressed
    assert text.count('class="document"') == sum(int(b["segment_ids"].max(axis=1).sum()) for b in batches)
    assert "&lt;pairs&gt;" in text
    assert "<pairs>" not in text
    assert "http" not in text, "self-contained"
    few = page(batches, tokenizer=small_tokenizer, source_names=loader.source_names, rows=1)
    assert few.count("<h3>Row ") == 1


def test_histogram():
    svg = histogram([1, 1, 60], maximum=64, bars=4)
    assert re.findall(r"<title>(.*?)</title>", svg) == ["0 to 16: 2", "16 to 32: 0", "32 to 48: 0", "48 to 64: 1"]


def test_command(sets, small_tokenizer, tmp_path, capsys, root):
    small_tokenizer.save(tmp_path / "tokenizer.model")
    config = tmp_path / "config.py"
    config.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "from configs import common\n"
        "def get_config():\n"
        "    config = common.base('emu_tiny', steps=1, batch_size=2, length=96, max_images=4)\n"
        f"    config.tokenizer = {str(tmp_path / 'tokenizer.model')!r}\n"
        f"    config.data.sets = common.sets({{'path': {str(sets['pairs'])!r}, 'name': 'pairs'}})\n"
        "    return config\n"
    )
    main([f"--config={config}", f"--output={tmp_path / 'page.html'}", "--batches=2", "--config.data.image_first=1.0"])
    printed = capsys.readouterr().out
    assert "4 rows counted" in printed
    assert re.search(r"A step has \d+ documents, [\d,]+ tokens and \d+ images \(2 rows of 96 tokens", printed)
    assert "data.batch.max_images=" in printed
    assert "recipe" not in printed
    assert (tmp_path / "page.html").read_text().count("data:image/png") >= 4
    with pytest.raises(UserError, match="--batches"):
        main([f"--config={config}", "--batches=0"])
