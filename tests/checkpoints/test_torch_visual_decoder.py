"""import-torch of a diffusers folder: to DEST/visual_decoder, beside a model or before it."""

import json
import shutil

import numpy as np
import pytest

from emu_jax.__main__ import main
from emu_jax.checkpoints.model_directory import load_model
from emu_jax.checkpoints.torch_files import open_tensors
from emu_jax.diffusion.decoder import load_visual_decoder
from tests.checkpoints.release import random_state, small_config, write_release, write_state


def run(*words):
    return main(["import-torch", *map(str, words)])


@pytest.fixture
def diffusers(tmp_path, shared_dir):
    folder = tmp_path / "diffusers"
    shutil.copytree(shared_dir / "reference" / "visual_decoder_tiny", folder, ignore=shutil.ignore_patterns("*.npz"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return folder


def test_it_stands_beside_the_model(tmp_path, diffusers):
    model = write_release(tmp_path / "source", small_config(), random_state(small_config()))
    assert run(model, diffusers, tmp_path / "model") == 0
    assert load_model(tmp_path / "model").visual_decoder == tmp_path / "model" / "visual_decoder"
    for part in ("unet", "vae"):
        ours, theirs = (open_tensors(f / part) for f in (tmp_path / "model" / "visual_decoder", diffusers))
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name].read(), theirs[name].read())
    assert load_visual_decoder(tmp_path / "model" / "visual_decoder").fresh == ()


def test_the_releases_own_folder_holds_both(tmp_path, diffusers):
    write_release(diffusers / "multimodal_encoder", small_config(), random_state(small_config()))
    assert run(diffusers, tmp_path / "model") == 0
    parts = load_model(tmp_path / "model")
    assert parts.config.decoder == small_config().decoder
    assert parts.visual_decoder is not None


def test_the_model_can_come_after_it(tmp_path, diffusers):
    assert run(diffusers, tmp_path / "model") == 0
    assert (
        run(write_release(tmp_path / "source", small_config(), random_state(small_config())), tmp_path / "model") == 0
    )
    assert load_model(tmp_path / "model").visual_decoder is not None


def test_bad_folders_are_refused(tmp_path, diffusers, capsys):
    file = diffusers / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.read() for name, tensor in open_tensors(file).items()}
    name = next(iter(state))

    def refused(damaged, said):
        file.unlink(missing_ok=True)
        write_state(diffusers / "unet", damaged)
        (diffusers / "unet" / "model.safetensors").rename(file)
        assert run(diffusers, tmp_path / "model") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "model").exists()

    refused({n: a for n, a in state.items() if n != name}, "1 tensors missing")
    refused(state | {"extra": np.zeros(1, np.float32)}, "1 unknown (extra)")
    refused(state | {name: np.full_like(state[name], np.nan)}, "NaN")
    config = json.loads((diffusers / "vae" / "config.json").read_text())
    config["block_out_channels"] = [2 * c for c in config["block_out_channels"]]
    (diffusers / "vae" / "config.json").write_text(json.dumps(config))
    refused(state, "wanted")
