"""An exported visual decoder in diffusers: its variants, its pixels, the folder of the release, and the docs page."""

import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch", reason="requires PyTorch: `make parity`")
diffusers = pytest.importorskip("diffusers", reason="requires diffusers: `make parity`")
transformers = pytest.importorskip("transformers", reason="requires transformers: `make parity`")

from emu_jax.__main__ import main  # noqa: E402
from emu_jax.convert.visual_decoder import load_visual_decoder  # noqa: E402
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer  # noqa: E402
from tests.convert.release import random_state, small_config, with_parts, write_release  # noqa: E402
from tests.parity.test_diffusion import WIDTH, saved, unet, vae  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "pytorch.md"
LINES = ["a red circle on a blue ground", "what is this? a small green square.", "a photo of a dog"]


def run(*words) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `model/`, a small Emu-I with a visual decoder, and `decoder/`, the decoder alone."""
    folder = tmp_path_factory.mktemp("decoder")
    train_tokenizer(LINES * 4, folder / "pieces.model", vocab_size=300)
    size = Tokenizer.load(folder / "pieces.model", instruct=True).vocab_size
    config = with_parts(small_config(dim=WIDTH - 4), decoder={"vocab_size": size, "max_length": 512})
    state = {name: 0.5 * array for name, array in random_state(config).items()}
    release = write_release(folder / "release", config, state)
    saved(folder / "decoder", unet(), vae())
    run("import-torch", release, folder / "decoder", folder / "model", "--tokenizer", folder / "pieces.model")
    return folder


def open_pipeline(path, **options):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(path, text_encoder=None, tokenizer=None, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_pixels_of_an_export_are_ours(folder, tmp_path):
    run("export-torch", folder / "model", tmp_path / "out", "--dtype", "float32")
    ours, theirs = load_visual_decoder(tmp_path / "out"), open_pipeline(tmp_path / "out")
    rng = np.random.default_rng(0)
    latents, embeddings, empty = (
        rng.normal(size=shape).astype(np.float32) for shape in ((1, 6, 10, 4), (1, 5, WIDTH), (1, 5, WIDTH))
    )
    images = theirs(
        prompt_embeds=torch.from_numpy(embeddings), negative_prompt_embeds=torch.from_numpy(empty),
        latents=torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()), height=24, width=40, guidance_scale=3.0,
        num_inference_steps=7, output_type="np",
    ).images  # fmt: skip
    sampled = ours.sample(embeddings, empty, latents=latents, sampler="pndm", steps=7, guidance_scale=3.0)
    expected = np.clip(np.asarray(ours.decode(sampled.latents)) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("source", ["model", "decoder"])
def test_a_variant_is_opened_by_its_name(folder, tmp_path, source):
    run("export-torch", folder / source, tmp_path / "out", "--dtype", "float16", "--variant", "fp16")
    theirs = open_pipeline(tmp_path / "out", variant="fp16", torch_dtype=torch.float16)
    for part, original in ((theirs.unet, unet()), (theirs.vae, vae())):
        state = part.state_dict()
        assert {tensor.dtype for tensor in state.values()} == {torch.float16}
        for name, tensor in original.state_dict().items():
            torch.testing.assert_close(state[name], tensor.half(), rtol=0, atol=0)


def test_the_folder_of_the_release_names_absent_parts(folder, tmp_path, capsys):
    run("export-torch", folder / "model", tmp_path / "out", "--format", "pipeline")
    notes = [line for line in capsys.readouterr().out.splitlines() if "safety_checker" in line]
    assert len(notes) == 1
    assert "feature_extractor/" in notes[0]
    assert open_pipeline(tmp_path / "out").unet.config.cross_attention_dim == WIDTH


def test_the_folder_of_the_release_is_complete(folder, tmp_path, capsys):
    screened = shutil.copytree(folder / "decoder", tmp_path / "screened")
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = small | {"image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(vision_config=vision, text_config=small, projection_dim=8)
    checker = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(config)
    checker.save_pretrained(screened / "safety_checker")
    transformers.CLIPImageProcessor(size=8, crop_size=8).save_pretrained(screened / "feature_extractor")
    run("import-torch", folder / "release", screened, tmp_path / "model", "--tokenizer", folder / "pieces.model")
    run("export-torch", tmp_path / "model", tmp_path / "out", "--format", "pipeline")
    assert "note:" not in capsys.readouterr().out
    state = torch.load(tmp_path / "out" / "multimodal_encoder" / "pytorch_model.bin", weights_only=True)
    assert "decoder.lm.model.embed_tokens.weight" in state
    theirs = open_pipeline(tmp_path / "out")
    for name, tensor in checker.state_dict().items():
        torch.testing.assert_close(theirs.safety_checker.state_dict()[name], tensor, rtol=0, atol=0)
    assert theirs.feature_extractor.crop_size["height"] == 8


def test_the_snippets_of_the_page_run_as_printed(folder, tmp_path, monkeypatch):
    run("export-torch", folder / "model", tmp_path / "out" / "model", "--format", "transformers", "--variant", "fp16")
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (30, 20), "red").save("cat.jpg")
    snippets = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert any("StableDiffusionPipeline" in snippet for snippet in snippets)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert PIL.Image.open("circle.png").size == (32, 32)
