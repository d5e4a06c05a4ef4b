"""Import and export use less memory than the model, so that the 14B fits on small hosts."""

import json
import math
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from emu_jax.convert.emu_config import to_release_config
from emu_jax.convert.emu_table import emu_table
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig
from tests.convert.release import released_shapes, write_sparse

FLOAT32 = 4
SLACK = 200e6  # bytes in addition to twice the largest parameter; for the 14B the bound has 2 GB

MANY_LAYERS = EmuConfig(
    vision=VisionConfig(image_size=28, patch_size=14, width=512, num_layers=48, num_heads=8, mlp_dim=2048),
    causal_former=CausalFormerConfig(
        num_image_tokens=8, width=128, num_layers=4, num_heads=4, head_dim=32, mlp_dim=512
    ),
    decoder=DecoderConfig(vocab_size=4000, width=512, num_layers=48, num_heads=8, num_kv_heads=8, mlp_dim=1376),
)

# Run a command and print the growth of the peak memory since all modules were imported.
MEASURED = """
    import resource, sys
    import emu_jax.convert.import_torch, emu_jax.convert.export_torch, emu_jax.convert.visual_decoder
    from emu_jax.__main__ import main
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = peak()
    assert main(sys.argv[1:]) == 0
    print("grown by", peak() - before)
"""


def grown_by(*words) -> int:
    """Return the growth in bytes, measured in a new process."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), *map(str, words)], capture_output=True, text=True, check=True
    )
    return int(result.stdout.splitlines()[-1].removeprefix("grown by "))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A sparse file of the model: zeros that use no disk space."""
    folder = tmp_path_factory.mktemp("release")
    (folder / "config.json").write_text(json.dumps(to_release_config(MANY_LAYERS)))
    write_sparse(folder / "model.safetensors", released_shapes(MANY_LAYERS))
    return folder


@pytest.mark.e2e
def test_peak_memory_is_bounded_by_the_largest_parameter(tmp_path, source):
    total = (source / "model.safetensors").stat().st_size
    bound = 2 * FLOAT32 * max(math.prod(row.stacked_shape) for row in emu_table(MANY_LAYERS)) + SLACK
    assert total > 1.9 * bound  # otherwise the test could not fail
    imported = grown_by("import-torch", source, tmp_path / "model")
    assert imported < bound, f"import: {imported / 1e6:.0f} MB, allowed {bound / 1e6:.0f} MB"
    exported = grown_by("export-torch", tmp_path / "model", tmp_path / "out")
    assert exported < bound, f"export: {exported / 1e6:.0f} MB, allowed {bound / 1e6:.0f} MB"
    print(f"model {total / 1e6:.0f} MB, import {imported / 1e6:.0f} MB, export {exported / 1e6:.0f} MB")


@pytest.mark.e2e
def test_a_killed_import_can_be_repeated(tmp_path, source):
    words = [sys.executable, "-m", "emu_jax", "import-torch", str(source), str(tmp_path / "model")]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob(".model.*.tmp/params*/*")):
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL  # it was running
    assert [path.name for path in tmp_path.iterdir() if path.name == "model"] == []
    subprocess.run(words, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "fingerprints",
        "params",
        "unused",
    ]
