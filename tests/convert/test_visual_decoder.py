"""import-torch of a diffusers folder: to DEST/visual_decoder, beside a model or before it."""

import json
import shutil

import jax
import numpy as np
import pytest

from emu_jax.__main__ import main
from emu_jax.convert.diffusion_folder import CONFIG_NAME, has_safety_checker
from emu_jax.convert.load import load_model
from emu_jax.convert.visual_decoder import load_visual_decoder
from emu_jax.io.tensor_files import open_tensors
from tests.convert.release import random_state, small_config, write_release, write_state


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
    config = small_config(dim=28)  # as wide as the U-Net's conditioning
    model = write_release(tmp_path / "source", config, random_state(config))
    assert run(model, diffusers, tmp_path / "model") == 0
    assert load_model(tmp_path / "model").visual_decoder == tmp_path / "model" / "visual_decoder"
    for part in ("unet", "vae"):
        ours, theirs = (open_tensors(f / part) for f in (tmp_path / "model" / "visual_decoder", diffusers))
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name].read(), theirs[name].read())
    assert load_visual_decoder(tmp_path / "model" / "visual_decoder").initialized == ()


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

    refused({n: a for n, a in state.items() if n != name}, "1 missing")
    refused(state | {"extra": np.zeros(1, np.float32)}, "1 unknown (extra)")
    refused(state | {name: np.full_like(state[name], np.nan)}, "NaN")
    config = json.loads((diffusers / "vae" / "config.json").read_text())
    config["block_out_channels"] = [2 * c for c in config["block_out_channels"]]
    (diffusers / "vae" / "config.json").write_text(json.dumps(config))
    refused(state, "expected")


def test_a_folder_that_could_not_be_used_is_refused(tmp_path, diffusers, capsys):
    config = diffusers / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_schedule": "squaredcos_cap_v2"}))
    assert run(diffusers, tmp_path / "model") == 2
    assert "beta_schedule must be one of" in capsys.readouterr().err
    shutil.rmtree(diffusers / "vae")
    assert run(diffusers, tmp_path / "model") == 2
    assert "vae/config.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_half_precision_files_have_names_of_their_own(tmp_path, diffusers):
    """`save_pretrained(variant="fp16")`; they come in, and go out, by their plain names."""
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


def test_narrower_projections_are_made_anew_and_listed(tmp_path, diffusers, capsys):
    """Stable Diffusion's U-Net reads 768; here the Emu that lies in DEST is 24 wide."""
    theirs = {part: open_tensors(diffusers / part) for part in ("unet", "vae")}
    width = small_config().decoder.width
    assert json.loads((diffusers / "unet" / "config.json").read_text())["cross_attention_dim"] != width
    model = write_release(tmp_path / "source", small_config(), random_state(small_config()))
    assert run(model, diffusers, tmp_path / "model") == 0
    said = capsys.readouterr().out
    folder = tmp_path / "model" / "visual_decoder"
    ours = {part: open_tensors(folder / part) for part in ("unet", "vae")}
    changed = {name for name in theirs["unet"] if ours["unet"][name].shape != theirs["unet"][name].shape}
    assert len(changed) == 32
    assert all(ours["unet"][name].shape[1] == width and ours["unet"][name].read().std() > 0 for name in changed)
    assert {line.strip() for line in said.splitlines() if "attn2" in line} == changed
    for name in set(theirs["unet"]) - changed:
        np.testing.assert_array_equal(ours["unet"][name].read(), theirs["unet"][name].read())
    as_loaded = load_visual_decoder(diffusers, cross_attention_dim=width)
    again = load_visual_decoder(folder)
    jax.tree.map(np.testing.assert_array_equal, again.params, as_loaded.params)


def test_it_goes_out_beside_the_model_and_comes_back(tmp_path, diffusers):
    model = write_release(tmp_path / "source", small_config(), random_state(small_config()))
    for part, name in (("safety_checker", "model.safetensors"), ("feature_extractor", None)):
        (diffusers / part).mkdir()
        (diffusers / part / CONFIG_NAME[part]).write_text("{}")
        if name:
            (diffusers / part / name).write_bytes(b"weights")
            (diffusers / part / "pytorch_model.bin").write_bytes(b"the same again")
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


def test_what_the_stages_leave_goes_out_alone(tmp_path, diffusers, capsys):
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
