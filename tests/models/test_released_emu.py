"""Outputs of the PyTorch release, for a small Emu and a small Emu-I in its checkpoint format."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.convert.load import load_model
from emu_jax.losses import masked_mean, text_losses
from emu_jax.models.emu import Emu

RELATIVE = 1e-4  # of the expected array's largest value
PAD, BOI, EOI, IMAGE_TOKEN = 32000, 32001, 32002, 32003
IMAGES_OF_PROMPT = ([0], [1, 2])


class Case:
    """A checkpoint in the format of the release, and the outputs of the release for it."""

    def __init__(self, folder):
        self.expected = dict(np.load(folder / "expected.npz"))
        parts = load_model(folder)
        self.config, self.params = parts.config, parts.params
        self.model = Emu(parts.config, image_token_id=IMAGE_TOKEN)
        self.images = jnp.asarray(self.expected["images"].transpose(0, 2, 3, 1))
        self.apply = jax.jit(lambda *args, **keywords: self.model.apply({"params": self.params}, *args, **keywords))

    def tokens(self, number):
        return self.expected[f"prompt{number}_ids"].astype(np.int32)

    @functools.cache  # noqa: B019  cases are never freed
    def prompt(self, number):
        images = self.images[None, np.array(IMAGES_OF_PROMPT[number])]
        return self.apply(jnp.asarray(self.tokens(number)), images)

    def embed(self, method):
        return jax.jit(lambda p, x: self.model.apply({"params": p}, x, method=method))(self.params, self.images)


open_case = functools.cache(Case)


@pytest.fixture(params=["emu_tiny", "emu_tiny_instruct"])
def case(request, shared_dir):
    return open_case(shared_dir / "reference" / request.param)


def assert_close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_image_features(case):
    assert_close(case.embed("image_features"), case.expected["vision_features"])


def test_visual_embeddings(case):
    assert_close(case.embed("embed_images"), case.expected["visual_embeddings"])


@pytest.mark.parametrize("number", [0, 1])
def test_decoder_and_heads(case, number):
    output = case.prompt(number)
    assert_close(output.hidden, case.expected[f"prompt{number}_hidden"])
    assert_close(output.visual_predictions, case.expected[f"prompt{number}_regressed"])
    assert_close(output.logits[:, -4:, : case.config.decoder.vocab_size], case.expected[f"prompt{number}_logits_last4"])


def test_padding_of_the_vocabulary_has_no_probability(case):
    padding = case.prompt(0).logits[..., case.config.decoder.vocab_size :]
    assert padding.shape[-1] > 0
    assert float(padding.max()) <= -1e29


def test_packed_prompts_match_separate_rows(case):
    """Packed documents do not attend to each other or to padding. Each has its own positions and images."""
    ids = [case.tokens(number) for number in (0, 1)]
    lengths = [row.shape[1] for row in ids]
    segments = np.repeat([1, 2, 0], [*lengths, 5])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in (*lengths, 5)])[None]
    tokens = np.concatenate([*ids, np.full((1, 5), PAD, np.int32)], axis=1)
    output = case.apply(
        jnp.asarray(tokens),
        case.images[None, np.array([0, 1, 2])],
        segment_ids=jnp.asarray(segments),
        positions=jnp.asarray(positions),
    )
    assert_close(output.hidden[:, : lengths[0]], case.expected["prompt0_hidden"])
    assert_close(output.hidden[:, lengths[0] : sum(lengths)], case.expected["prompt1_hidden"])


def test_released_text_loss(shared_dir):
    """The release pads on the right and masks the labels [PAD], [IMG], [/IMG] and <image>."""
    case = open_case(shared_dir / "reference" / "emu_tiny")
    tokens = jnp.asarray(case.expected["batch_ids"].astype(np.int32))
    attended = jnp.asarray(case.expected["batch_mask"].astype(np.int32))
    images = jnp.stack([case.images[np.array([0, 0])], case.images[1:3]])  # one image, and one unused slot
    output = case.apply(tokens, images, segment_ids=attended)
    labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
    counted = ~jnp.isin(labels, jnp.asarray([PAD, BOI, EOI, IMAGE_TOKEN]))
    losses = text_losses(output.logits, tokens=tokens, vocab_size=case.config.decoder.vocab_size)
    loss = masked_mean(losses, counted.astype(jnp.float32)).compute()
    np.testing.assert_allclose(loss, case.expected["text_loss"], rtol=1e-5)
