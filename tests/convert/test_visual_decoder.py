"""import-torch of a diffusers folder to DEST/visual_decoder, before or after a model."""

import json
import shutil

import jax
import numpy as np
import pytest

from emu_jax.__main__ import main
from emu_jax.convert.diffusion_folder import CONFIG_NAME, has_safety_checker
from emu_jax.convert.diffusion_table import unet_table, vae_table
from emu_jax.convert.load import load_model
from emu_jax.convert.table import read_params
from emu_jax.convert.visual_decoder import load_visual_decoder, save_visual_decoder
from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, PLAIN_DOWN, PLAIN_UP, UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.diffusion.vae import VAE
from emu_jax.io.tensor_files import open_tensors
from emu_jax.io.tensors import tensor_of
from tests.convert.release import random_state, small_config, write_release, write_state

WIDTH = 32  # of the conditioning
CROSS_ATTENTIONS = 4  # of the U-Net


def run(*words):
    return main(["import-torch", *map(str, words)])


@pytest.fixture(scope="module")
def decoder():
    """A small decoder with random parameters. The width of its conditioning is 32."""
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=(CROSS_DOWN, PLAIN_DOWN),
        up_block_types=(PLAIN_UP, CROSS_UP),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
    )
    vae = VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=16)
    rng = np.random.default_rng(0)
    params = {}
    for part, table in (("unet", unet_table(unet)), ("vae", vae_table(vae))):
        tensors = {row.torch: rng.standard_normal(row.torch_shape, np.float32) for row in table}
        params[part] = read_params(table, {name: tensor_of(name, array) for name, array in tensors.items()})
    return VisualDecoder(UNet(unet), VAE(vae), schedule=NoiseSchedule(), params=params)


@pytest.fixture
def diffusers(tmp_path, decoder):
    save_visual_decoder(decoder, tmp_path / "diffusers")
    return tmp_path / "diffusers"


def test_a_decoder_is_imported_with_a_model(tmp_path, diffusers):
    config = small_config(dim=WIDTH - 4)  # the width of the U-Net's conditioning
    model = write_release(tmp_path / "source", config, random_state(config))
    assert run(model, diffusers, tmp_path / "model") == 0
    assert load_model(tmp_path / "model").visual_decoder == tmp_path / "model" / "visual_decoder"
    for part in ("unet", "vae"):
        ours, theirs = (open_tensors(f / part) for f in (tmp_path / "model" / "visual_decoder", diffusers))
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name].read(), theirs[name].read())
    assert load_visual_decoder(tmp_path / "model" / "visual_decoder").initialized == ()


def test_the_folder_of_the_release_has_both(tmp_path, diffusers):
    write_release(diffusers / "multimodal_encoder", small_config(), random_state(small_config()))
    assert run(diffusers, tmp_path / "model") == 0
    parts = load_model(tmp_path / "model")
    assert parts.config.decoder == small_config().decoder
    assert parts.visual_decoder is not None


def test_a_model_is_imported_after_its_decoder(tmp_path, diffusers):
    assert run(diffusers, tmp_path / "model") == 0
    assert (
        run(write_release(tmp_path / "source", small_config(), random_state(small_config())), tmp_path / "model") == 0
    )
    assert load_model(tmp_path / "model").visual_decoder is not None


def test_invalid_folders_are_refused(tmp_path, diffusers, capsys):
    file = diffusers / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.read() for name, tensor in open_tensors(file).items()}
    name = next(iter(state))

    def refused(damaged, message):
        file.unlink(missing_ok=True)
        write_state(diffusers / "unet", damaged)
        (diffusers / "unet" / "model.safetensors").rename(file)
        assert run(diffusers, tmp_path / "model") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "model").exists()

    refused({n: a for n, a in state.items() if n != name}, "1 missing")
    refused(state | {"extra": np.zeros(1, np.float32)}, "1 unknown (extra)")
    refused(state | {name: np.full_like(state[name], np.nan)}, "NaN")
    config = json.loads((diffusers / "vae" / "config.json").read_text())
    config["block_out_channels"] = [2 * c for c in config["block_out_channels"]]
    (diffusers / "vae" / "config.json").write_text(json.dumps(config))
    refused(state, "expected")


def test_incomplete_and_unsupported_folders_are_refused(tmp_path, diffusers, capsys):
    config = diffusers / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_schedule": "squaredcos_cap_v2"}))
    assert run(diffusers, tmp_path / "model") == 2
    assert "beta_schedule must be one of" in capsys.readouterr().err
    shutil.rmtree(diffusers / "vae")
    assert run(diffusers, tmp_path / "model") == 2
    assert "vae/config.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_variants_are_read_and_written_by_their_plain_names(tmp_path, diffusers):
    """Files of `save_pretrained(variant="fp16")`."""
    plain = load_visual_decoder(diffusers)
    for part in ("unet", "vae"):
        file = diffusers / part / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_suffix(".fp16.safetensors"))
    (diffusers / "safety_checker").mkdir()
    (diffusers / "safety_checker" / "config.json").write_text("{}")
    assert not has_safety_checker(diffusers)
    (diffusers / "safety_checker" / "model.fp16.safetensors").write_bytes(b"weights")
    assert has_safety_checker(diffusers)
    assert run(diffusers, tmp_path / "model") == 0
    assert main(["export-torch", str(diffusers), str(tmp_path / "out")]) == 0
    for folder in (tmp_path / "model" / "visual_decoder", tmp_path / "out"):
        assert (folder / "safety_checker" / "model.safetensors").read_bytes() == b"weights"
        jax.tree.map(np.testing.assert_array_equal, load_visual_decoder(folder).params, plain.params)
        assert not list(folder.rglob("*.fp16.*"))


def test_projections_of_another_width_are_initialized_and_listed(tmp_path, diffusers, capsys):
    """The conditioning of Stable Diffusion's U-Net has width 768; here, the width is that of the Emu in DEST."""
    theirs = {part: open_tensors(diffusers / part) for part in ("unet", "vae")}
    width = small_config().decoder.width
    assert json.loads((diffusers / "unet" / "config.json").read_text())["cross_attention_dim"] != width
    model = write_release(tmp_path / "source", small_config(), random_state(small_config()))
    assert run(model, diffusers, tmp_path / "model") == 0
    output = capsys.readouterr().out
    folder = tmp_path / "model" / "visual_decoder"
    ours = {part: open_tensors(folder / part) for part in ("unet", "vae")}
    changed = {name for name in theirs["unet"] if ours["unet"][name].shape != theirs["unet"][name].shape}
    assert len(changed) == 2 * CROSS_ATTENTIONS
    assert all(ours["unet"][name].shape[1] == width and ours["unet"][name].read().std() > 0 for name in changed)
    assert {line.strip() for line in output.splitlines() if "attn2" in line} == changed
    for name in set(theirs["unet"]) - changed:
        np.testing.assert_array_equal(ours["unet"][name].read(), theirs["unet"][name].read())
    as_loaded = load_visual_decoder(diffusers, cross_attention_dim=width)
    again = load_visual_decoder(folder)
    jax.tree.map(np.testing.assert_array_equal, again.params, as_loaded.params)


def test_a_decoder_is_exported_with_its_model_and_imported_again(tmp_path, diffusers):
    model = write_release(tmp_path / "source", small_config(), random_state(small_config()))
    for part, name in (("safety_checker", "model.safetensors"), ("feature_extractor", None)):
        (diffusers / part).mkdir()
        (diffusers / part / CONFIG_NAME[part]).write_text("{}")
        if name:
            (diffusers / part / name).write_bytes(b"weights")
            (diffusers / part / "pytorch_model.bin").write_bytes(b"the same weights")
    assert run(model, diffusers, tmp_path / "model") == 0
    assert main(["export-torch", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "safety_checker" / "model.safetensors").read_bytes() == b"weights"
    assert not (tmp_path / "out" / "safety_checker" / "pytorch_model.bin").exists()
    for part in ("unet", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / "visual_decoder" / name).read_bytes()
    assert load_model(tmp_path / "out").visual_decoder == tmp_path / "out"
    assert run(tmp_path / "out", tmp_path / "again") == 0
    assert load_model(tmp_path / "again").visual_decoder is not None


def test_the_result_of_a_decoder_stage_is_exported(tmp_path, diffusers, capsys):
    run_folder = tmp_path / "run"
    (run_folder / "checkpoints" / "3" / "params").mkdir(parents=True)
    (run_folder / "config.json").write_text('{"stage": "visual_decoder"}')
    shutil.copytree(diffusers, run_folder / "visual_decoder")
    for source in (run_folder, diffusers):
        out = tmp_path / f"out_{source.name}"
        assert main(["export-torch", str(source), str(out)]) == 0
        assert load_visual_decoder(out).initialized == ()
        assert "unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().out
    assert main(["export-torch", str(run_folder), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_unet_of_another_task_is_refused_at_import(tmp_path, diffusers, capsys):
    """An inpainting model has nine input channels: latents, masked latents and a mask."""
    file = diffusers / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.read() for name, tensor in open_tensors(file).items()}
    state["conv_in.weight"] = np.zeros((8, 9, 3, 3), np.float32)
    file.unlink()
    write_state(diffusers / "unet", state)
    config = diffusers / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    assert run(diffusers, tmp_path / "model") == 2
    assert "has 9 input and 4 output channels" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("index", [True, False])
def test_sharded_parts_with_prefixes_are_imported(tmp_path, diffusers, index):
    file = diffusers / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.read() for name, tensor in open_tensors(file).items()}
    file.unlink()
    write_state(diffusers / "unet", {f"module._orig_mod.{n}": a for n, a in state.items()}, shard_bytes=30_000)
    name = diffusers / "unet" / "model.safetensors.index.json"
    if index:
        name.rename(diffusers / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json")
    else:
        name.unlink()
    assert run(diffusers, tmp_path / "model") == 0
    imported = open_tensors(tmp_path / "model" / "visual_decoder" / "unet")
    assert imported.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(imported[name].read(), array)
