"""The same outputs as the release: ids in every position, embeddings after all regression steps."""

from __future__ import annotations

import numpy as np
import pytest

from emu_jax.generation.pipeline import EmuPipeline

CASES = {
    "gen_greedy": {},
    "gen_beam5": {"num_beams": 5, "length_penalty": 0.0},
    "gen_beam5_len1": {"num_beams": 5, "length_penalty": 1.0},
    "gen_beam5_rep": {"num_beams": 5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
}


@pytest.fixture(params=["pretrained", "instruct"])
def reference(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


def test_prompts_have_the_tokens_of_the_release(reference) -> None:
    for index in (0, 1):
        prompt = reference.emu.build_prompt(reference.prompt(index), special_tokens=True)
        np.testing.assert_array_equal(prompt.tokens, reference.expected[f"prompt{index}_ids"][0])


@pytest.mark.parametrize("case", CASES)
def test_ids_are_equal_in_every_position(reference, case: str) -> None:
    """Both prompts are in one left-padded batch, so padding has no effect either."""
    prompts = [reference.prompt(0), reference.prompt(1)]
    ids = reference.emu.generate_text_batch(
        prompts, return_ids=True, special_tokens=True, max_new_tokens=12, **CASES[case]
    )
    for index in (0, 1):
        expected = reference.expected[f"{case}_prompt{index}"][0]
        assert [reference.emu.tokenizer.bos_id, *ids[index]] == expected.tolist()


def _close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() < 1e-3


def test_text_to_image_embeddings(pretrained) -> None:
    """The second row of the batch is the empty prompt, the unconditional input of guidance."""
    actual = pretrained.emu.generate_embeddings_batch(["An image of a dog wearing a pair of glasses.", ""])
    _close(actual, pretrained.expected["t2i_embeddings"])


def test_in_context_embeddings(pretrained) -> None:
    first, second, _ = pretrained.images
    prompt = [
        "This is the first image: ", first, "This is the second image: ", second,
        "The animal in the first image surrounded with the plant in the second image: ",
    ]  # fmt: skip
    _close(pretrained.emu.generate_embeddings(prompt), pretrained.expected["incontext_embeddings"][0])


def test_blending_embeddings(pretrained) -> None:
    _close(pretrained.emu.generate_embeddings(pretrained.images[:2]), pretrained.expected["blend_embeddings"][0])


def test_visual_embeddings(reference) -> None:
    expected = reference.expected["visual_embeddings"]
    actual = reference.emu.visual_embeddings(reference.images)
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def test_forward(reference) -> None:
    """Compare logits (of the unpadded vocabulary), hidden states and predicted embeddings of each prompt."""
    emu, expected = reference.emu, reference.expected
    for index in (0, 1):
        images = np.stack([part for part in reference.prompt(index) if not isinstance(part, str)])
        output = emu.forward(expected[f"prompt{index}_ids"], images[None])
        for name, actual in (
            ("logits_last4", output.logits[:, -4:]),
            ("hidden", output.hidden),
            ("regressed", output.visual_predictions),
        ):
            reference_output = expected[f"prompt{index}_{name}"]
            assert actual.shape == reference_output.shape
            difference = np.abs(np.asarray(actual) - reference_output).max()
            assert difference < 1e-4 * np.abs(reference_output).max()


def test_score_is_the_log_likelihood_of_a_forward_pass(pretrained) -> None:
    emu: EmuPipeline = pretrained.emu
    prompt = pretrained.prompt(0)
    scores = emu.score(prompt, ["cat", "two dogs"], end=True)
    tokens = emu.build_prompt(prompt).tokens
    for text, score in zip(("cat", "two dogs"), scores, strict=True):
        answer = [*emu.tokenizer.encode(text), emu.tokenizer.eos_id]
        output = emu.forward([[*tokens, *answer]], np.stack(pretrained.images[:1])[None])
        logits = np.asarray(output.logits[0], np.float64)
        log_probs = logits - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True))
        log_probs -= logits.max(-1, keepdims=True)
        positions = np.arange(len(tokens) - 1, len(tokens) - 1 + len(answer))
        np.testing.assert_allclose(score, log_probs[positions, answer].sum(), rtol=1e-4)
