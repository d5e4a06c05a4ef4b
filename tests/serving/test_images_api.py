"""/v1/images/generations and /v1/images/edits through the official client."""

from __future__ import annotations

import base64
import io

import httpx2 as httpx
import numpy as np
import openai
import PIL.Image
import pytest

from tests.serving.conftest import IMAGE_SIZE, MODEL, N, Running, png, solid_image

RED, BLUE = solid_image(200, 0, 0), solid_image(0, 0, 200)
STEPS = {"steps": 4, "guidance": 3.0}


def pixels(b64: str) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(b64))))


def test_generation(server: Running, client: openai.OpenAI) -> None:
    """`n` images of a prompt, each from other noise: the pipeline's, pixel by pixel."""
    got = client.images.generate(
        model=MODEL, prompt="a red circle", n=3, size=f"{IMAGE_SIZE}x{IMAGE_SIZE}", response_format="b64_json",
        extra_body=STEPS | {"seed": 8},
    )  # fmt: skip
    expected = server.emu.generate_image("a red circle", num_images=3, steps=4, guidance_scale=3.0, seed=8)
    assert len(got.data) == 3
    for one, image in zip(got.data, expected, strict=True):
        np.testing.assert_array_equal(pixels(one.b64_json), np.asarray(image))
    assert got.usage.output_tokens == N + 2
    assert got.usage.input_tokens_details.image_tokens == 0
    assert got.usage.input_tokens == len(server.emu.build_prompt("a red circle").tokens)


def test_a_seed_is_drawn_where_none_is_given(client: openai.OpenAI) -> None:
    one, two = (client.images.generate(model=MODEL, prompt="a", extra_body=STEPS).data[0].b64_json for _ in range(2))
    assert one != two


@pytest.mark.parametrize("count", [1, 2])
def test_edits(server: Running, client: openai.OpenAI, count: int) -> None:
    """One image and an instruction, or several images (blending): an in-context prompt."""
    images = [RED, BLUE][:count]
    files = [(f"{i}.png", png(image), "image/png") for i, image in enumerate(images)]
    got = client.images.edit(
        model=MODEL, image=files if count > 1 else files[0], prompt="make it green", extra_body=STEPS | {"seed": 3}
    )
    (expected,) = server.emu.generate_image([*images, "make it green"], steps=4, guidance_scale=3.0, seed=3)
    np.testing.assert_array_equal(pixels(got.data[0].b64_json), np.asarray(expected))
    assert got.usage.input_tokens_details.image_tokens == count * (N + 2)


@pytest.mark.parametrize(
    ("body", "field", "word"),
    [
        ({"n": 0}, "n", "at least 1"),
        ({"n": 11}, "n", "at most 10"),
        ({"size": "8 x 8"}, "size", "WIDTHxHEIGHT"),
        ({"size": "512x512"}, "size", "8x8"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"prompt": 3}, "prompt", "string"),
        ({"prompt": None}, "prompt", "missing"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"steps": 101}, "num_inference_steps", "at most 100"),
        ({"guidance": -1}, "guidance", "at least 0"),
        ({"sampler": "euler"}, "sampler", "pndm"),
        ({"num_inference_step": 5}, "num_inference_step", "num_inference_steps"),
        ({"model": "other"}, "model", "no model"),
    ],
)
def test_bad_fields(http: httpx.Client, body: dict, field: str | None, word: str) -> None:
    got = http.post("/v1/images/generations", json={"prompt": "a"} | body)
    assert got.status_code == (404 if field == "model" else 400)
    assert got.json()["error"]["param"] == field
    assert word in got.json()["error"]["message"]


def test_bad_edits(http: httpx.Client) -> None:
    refused = {
        "image is missing": http.post("/v1/images/edits", data={"prompt": "a"}, files={"other": b"x"}),
        "not a multipart form": http.post("/v1/images/edits", json={"prompt": "a"}),
        "image[0] is not an image": http.post("/v1/images/edits", data={"prompt": "a"}, files={"image": b"no image"}),
        "n must be a number": http.post("/v1/images/edits", data={"prompt": "a", "n": "x"}, files={"image": png(RED)}),
        "mask is not served": http.post(
            "/v1/images/edits", data={"prompt": "a"}, files={"image": png(RED), "mask": png(RED)}
        ),
    }
    for message, got in refused.items():
        assert got.status_code == 400, got.text
        assert message in got.json()["error"]["message"]
