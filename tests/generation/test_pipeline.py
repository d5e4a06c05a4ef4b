"""A loaded Emu with random weights: batches, buckets, sampling, alternating text and images, decoding, clear errors."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from emu_jax.errors import UserError
from emu_jax.generation.mixed import interleave
from emu_jax.generation.options import ImageOptions
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.pixels import contact_sheet
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from tests.generation.conftest import tiny_visual_decoder

N = 4
RED = np.full((32, 32, 3), (200, 0, 0), np.uint8)
BLUE = np.full((32, 32, 3), (0, 0, 200), np.uint8)


@pytest.fixture(scope="module")
def with_decoder(tiny: EmuPipeline) -> EmuPipeline:
    """The tiny Emu with a tiny visual decoder."""
    decoder = tiny_visual_decoder(tiny.config.decoder.width)
    return EmuPipeline(tiny.config, tiny.params, tokenizer=tiny.tokenizer, visual_decoder=decoder)


def test_a_result_does_not_depend_on_the_batch(tiny: EmuPipeline) -> None:
    prompts = [["a"], ["a red circle", RED], [RED, "and", BLUE, "what is this?"]]
    together = tiny.generate_text_batch(prompts, return_ids=True, max_new_tokens=6)
    separately = [tiny.generate_text(prompt, return_ids=True, max_new_tokens=6) for prompt in prompts]
    assert together == separately


def test_prompts_of_one_bucket_share_their_programs(tiny: EmuPipeline, caplog: pytest.LogCaptureFixture) -> None:
    """Greedy search, beam search, embeddings and scores compile once per bucket, and no additional small programs."""

    def use(text: str, answers: list[str], penalty: float) -> None:
        assert len(tiny.build_prompt([RED, text], open_image=True).tokens) <= 16
        tiny.generate_text([RED, text], max_new_tokens=5)
        tiny.generate_text([RED, text], max_new_tokens=11, min_length=3)
        tiny.generate_text([RED, text], max_new_tokens=5, num_beams=2, length_penalty=penalty)
        tiny.generate_embeddings([RED, text])
        tiny.score([RED, text], answers)

    use("a", ["dog"], 1.0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        use("a dog", ["cat"], -1.0)
        use("is", ["a"], 0.0)
        assert not [record.message for record in caplog.records if "XLA compilation" in record.message]
        tiny.generate_embeddings("a red circle " * 8)  # another bucket
    assert [record for record in caplog.records if "XLA compilation" in record.message]


def test_each_token_is_the_most_likely_one_of_a_forward_pass(tiny: EmuPipeline) -> None:
    prompt = [RED, "this is a"]
    ids = tiny.generate_text(prompt, return_ids=True, max_new_tokens=6)
    tokens = [*tiny.build_prompt(prompt).tokens.tolist(), *ids]
    logits = np.asarray(tiny.forward([tokens], RED[None, None]).logits)
    assert logits.shape[-1] == tiny.tokenizer.vocab_size
    assert logits[0].argmax(-1)[-1 - len(ids) : -1].tolist() == ids


def test_sampling(tiny: EmuPipeline) -> None:
    sample = lambda **options: tiny.generate_text(
        "a", return_ids=True, max_new_tokens=8, top_p=0.9, **{"temperature": 5.0, "seed": 3, **options}
    )
    first = sample()
    assert sample() == first
    assert sample(seed=4) != first
    assert sample(temperature=1e-4) == tiny.generate_text("a", return_ids=True, max_new_tokens=8)
    assert sample(top_k=1) == tiny.generate_text("a", return_ids=True, max_new_tokens=8)


def test_each_embedding_is_the_input_of_the_next(tiny: EmuPipeline) -> None:
    """N steps with a cache give the predictions of one pass over the complete sequence."""
    prompt = tiny.build_prompt(["a red circle"], open_image=True)
    generated = tiny.generate_embeddings(["a red circle"])
    assert generated.shape == (N, 128)

    @jax.jit
    def predictions(params: Any, inputs: jax.Array) -> jax.Array:
        length = inputs.shape[1]
        layout = {"positions": jnp.arange(length)[None], "mask": jnp.tril(jnp.ones((1, length, length), bool))}
        predict = lambda model: model.next_embedding(model.decoder(inputs, **layout)[0])
        return tiny.model.apply({"params": params}, method=predict)

    prompt_embeddings = tiny.forward(prompt.tokens[None]).input_embeddings
    inputs = jnp.concatenate([prompt_embeddings, generated[None, :-1]], axis=1)
    expected = predictions(tiny.params, inputs)[0, -N:]
    np.testing.assert_allclose(generated, expected, atol=1e-4 * float(jnp.abs(expected).max()))


def test_an_image_followed_by_text(tiny: EmuPipeline) -> None:
    image, *rest = tiny.generate(["a red circle"], open_image="first", max_new_tokens=5)
    expected = tiny.generate_embeddings(["a red circle"])
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
    assert all(isinstance(part, str) for part in rest)


def test_a_story_alternates(tiny: EmuPipeline) -> None:
    """The weights make `</s>` the most likely token after the prompt, so each text ends and an image follows."""
    head = tiny.params["lm_head"]["projection"]["kernel"]
    hidden = jax.device_get(tiny.forward(tiny.build_prompt(["a red"]).tokens[None]).hidden)[0, -1]
    ended = {"projection": {"kernel": head.at[:, tiny.tokenizer.eos_id].set(0.5 * hidden)}}
    emu = EmuPipeline(tiny.config, {**tiny.params, "lm_head": ended}, tokenizer=tiny.tokenizer)
    found = emu.generate(["a red"], open_image="alternate", max_images=2, max_new_tokens=10)
    images = [part for part in found if not isinstance(part, str)]
    assert len(images) == 2
    assert all(image.shape == (N, 128) and np.abs(image).max() > 0 for image in images)
    assert not np.allclose(images[0], images[1])


def test_interleaving(tiny: EmuPipeline) -> None:
    special, text = tiny.tokenizer, tiny.tokenizer.encode("a dog")
    image = [special.boi_id, *[special.image_token_id] * 2, special.eoi_id]
    embeddings = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    ids = np.array([*text, *image, *image, *text, special.boi_id, special.image_token_id])
    found = interleave(ids, embeddings, tokenizer=special)
    assert [part if isinstance(part, str) else part.tolist() for part in found] == [
        "a dog", embeddings[0].tolist(), embeddings[1].tolist(), "a dog",
    ]  # fmt: skip


def test_on_a_mesh(tiny: EmuPipeline) -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=1), devices=jax.devices()[:2])
    sharded = EmuPipeline(tiny.config, jax.device_get(tiny.params), tokenizer=tiny.tokenizer, mesh=mesh)
    prompt = [RED, "a red circle"]
    np.testing.assert_allclose(sharded.generate_embeddings(prompt), tiny.generate_embeddings(prompt), atol=1e-4)


def test_images(with_decoder: EmuPipeline) -> None:
    """An image depends on its seed and not on the number of images; flagged images are black."""
    few = {"steps": 2, "sampler": "ddim"}
    one = with_decoder.generate_image(["a red circle"], seed=5, **few)[0]
    two = with_decoder.generate_image(["a red circle"], seed=5, num_images=2, **few)
    assert one.size == (8, 8)
    assert np.abs(np.asarray(two[0], int) - np.asarray(one, int)).max() <= 1
    assert two[0].tobytes() != two[1].tobytes()
    assert with_decoder.generate_image(["a red circle"], seed=6, **few)[0].tobytes() != one.tobytes()
    blended = with_decoder.generate_image([RED, BLUE], safety=lambda images: [True] * len(images), **few)[0]
    assert not np.asarray(blended).any()
    with_decoder.__dict__["safety_checker"] = lambda images: [True] * len(images)  # as stored next to the decoder
    try:
        assert not np.asarray(with_decoder.generate_image(["a red circle"], seed=5, **few)[0]).any()
        unscreened = with_decoder.generate_image(["a red circle"], seed=5, safety=False, **few)[0]
        assert unscreened.tobytes() == one.tobytes()
    finally:
        del with_decoder.__dict__["safety_checker"]
    assert with_decoder.autoencode_image(RED, **few).size == (8, 8)
    expected = with_decoder.decode_embeddings(with_decoder.visual_embeddings([RED]), seed=1, **few)
    assert with_decoder.generate_image([RED], autoencode=True, seed=1, **few)[0].tobytes() == expected[0].tobytes()
    story = with_decoder.generate(["a red"], open_image="first", max_new_tokens=2, image=ImageOptions(**few))
    assert isinstance(story[0], PIL.Image.Image)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (["a"], {"num_images": 0}, "num_images must be an integer from 1 to 1024, not 0"),
        (["a"], {"num_images": 10**7}, "num_images must be an integer from 1 to 1024"),
        (["a"], {"steps": 0}, "steps must be an integer from 1 to 1000, not 0"),
        (["a"], {"guidance_scale": -1}, "guidance_scale must be a number from 0.0 to 1000.0, not -1"),
        (["a"], {"sampler": "euler"}, "sampler must be one of"),
        (["a"], {"height": 9}, "height must be a multiple of 2, not 9"),
        (["a"], {"seed": -1}, "seed must be an integer from 0 to 4294967295, not -1"),
        (["a"], {"guidance": 1}, "no option 'guidance'"),
        (["a", RED], {"autoencode": True}, "a prompt of one image"),
        ([RED, BLUE], {"autoencode": True}, "a prompt of one image"),
    ],
)
def test_bad_image_options_are_refused_before_the_work(
    with_decoder: EmuPipeline, monkeypatch: pytest.MonkeyPatch, prompt: list, options: dict, message: str
) -> None:
    monkeypatch.setattr(with_decoder, "generate_embeddings", lambda *_, **__: pytest.fail("the work started"))
    with pytest.raises(UserError, match=message):
        with_decoder.generate_image(prompt, **options)


def test_contact_sheet() -> None:
    sheet = contact_sheet([PIL.Image.new("RGB", (8, 6), "black")] * 3, gap=2)
    assert sheet.size == (18, 14)
    assert sheet.getpixel((17, 13)) == (255, 255, 255)


def test_clear_errors(tiny: EmuPipeline) -> None:
    with pytest.raises(UserError, match="128"):
        tiny.generate_text("a red circle " * 60)
    with pytest.raises(UserError, match="num_beam"):
        tiny.generate_text("a", num_beam=5)
    with pytest.raises(UserError, match="visual_decoder"):
        tiny.generate_image(["a red circle"])
    with pytest.raises(UserError, match="candidate"):
        tiny.score(["a"], [])
    with pytest.raises(UserError, match="image"):
        tiny.visual_embeddings([])
    with pytest.raises(UserError, match="open_image"):
        tiny.generate(["a"], open_image="never")
    with pytest.raises(UserError, match="max_images"):
        tiny.generate(["a"], max_images=0)
    with pytest.raises(UserError, match="Beam search"):
        tiny.generate(["a"], num_beams=2)
    with pytest.raises(UserError, match="images fill only"):
        tiny.forward([tiny.build_prompt([RED, BLUE]).tokens], RED[None, None])
    other = dataclasses.replace(tiny.config, decoder=dataclasses.replace(tiny.config.decoder, max_length=16))
    with pytest.raises(UserError, match="follow"):
        EmuPipeline(other, tiny.params, tokenizer=tiny.tokenizer).generate_embeddings([RED, BLUE])
