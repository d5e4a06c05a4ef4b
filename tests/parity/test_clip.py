"""CLIP's embeddings of images and texts against those of transformers, with random weights."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from transformers import CLIPConfig, CLIPModel  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from emu_jax.evaluation.image_metrics.clip import Clip  # noqa: E402

WORDS = ["a", "red", "dog", "table", "[START]", "[END]"]
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**small, "vocab_size": len(WORDS), "max_position_embeddings": 8, "eos_token_id": 5, "bos_token_id": 4}
    vision = {**small, "image_size": SIZE, "patch_size": 4}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" not in name and tensor.ndim:
                tensor.normal_(0, 0.3)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", 4), ("[END]", 5)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def features(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@torch.no_grad()
def test_embeddings_equal_those_of_transformers(folder):
    ours, theirs = Clip(folder), CLIPModel.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 30, 3)).astype(np.uint8) for _ in range(3)]
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(
        [PIL.Image.fromarray(image) for image in images], return_tensors="pt"
    ).pixel_values
    expected = torch.nn.functional.normalize(features(theirs.get_image_features(pixel_values=pixels)), dim=-1)
    np.testing.assert_allclose(ours.embed_images(images), expected.numpy(), atol=2e-5)

    ids = torch.tensor([[4, 0, 1, 2, 5], [4, 3, 5, 5, 5]])
    expected = torch.nn.functional.normalize(features(theirs.get_text_features(input_ids=ids)), dim=-1)
    np.testing.assert_allclose(ours.embed_texts(["a red dog", "table"]), expected.numpy(), atol=2e-5)
    long = " ".join(["red"] * 20)
    assert ours.embed_texts([long]).shape == (1, 12)
