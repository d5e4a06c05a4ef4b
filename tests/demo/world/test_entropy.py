"""The exact entropies against sampled texts of the generator itself."""

import collections
import math

import numpy as np
import pytest

from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.demo.world import entropy as e
from emu_jax.demo.world.corpus import corpus
from emu_jax.demo.world.grammar import caption
from emu_jax.demo.world.motion import clip_caption, sample_clip
from emu_jax.demo.world.questions import conversation
from emu_jax.demo.world.scenes import sample_scene
from emu_jax.demo.world.stories import next_step, sample_page, sample_storyboard

SAMPLES = 20_000


def sampled_entropy(values) -> float:
    """The plug-in estimate with Miller and Madow's correction (1955)."""
    counts = np.array(list(collections.Counter(values).values()))
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum() + (len(p) - 1) / (2 * counts.sum()))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_outcomes_run_every_path():
    def two_dice(rng):
        first = int(rng.integers(1, 7))
        return first if first == 6 else first + int(rng.integers(1, 7))

    found = e.outcomes(two_dice)
    assert found[6] == pytest.approx(1 / 6 + 5 / 36)
    assert math.fsum(found.values()) == pytest.approx(1.0)


def test_outcomes_of_a_function_that_draws_again():
    def odd(rng):
        while True:
            value = int(rng.integers(6))
            if value % 2:
                return value

    assert e.outcomes(odd, most_draws=1) == pytest.approx({1: 1 / 3, 3: 1 / 3, 5: 1 / 3})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_wording_of_a_caption(rng, count):
    scene = sample_scene(rng, num_objects=count)
    exact = e.wording_entropy(count)
    assert sampled_entropy(caption(scene, rng) for _ in range(SAMPLES)) == pytest.approx(exact, abs=0.01)


def test_scenes_of_one_object(rng):
    found = sampled_entropy(sample_scene(rng, num_objects=1) for _ in range(3 * SAMPLES))
    assert found == pytest.approx(e.scene_entropy(1), abs=0.01)


@pytest.mark.parametrize("count", [2, 3])
def test_shapes_colors_and_positions_of_several_objects(rng, count):
    """Too many sets to count them: their probability by the exact count is compared with how often they are drawn."""
    scenes = [sample_scene(rng, num_objects=count) for _ in range(2 * SAMPLES)]
    sets = [frozenset((item.shape, item.color, item.location) for item in scene.objects) for scene in scenes]
    probabilities = e.object_sets(count)
    assert math.fsum(probabilities.values()) == pytest.approx(1.0)
    surprise = np.array([-math.log(probabilities[one]) for one in sets])
    error = surprise.std() / math.sqrt(len(surprise))
    assert surprise.mean() == pytest.approx(e.entropy(probabilities), abs=4 * error + 1e-9)
    repeats = sum(n * (n - 1) for n in collections.Counter(sets).values()) / (len(sets) * (len(sets) - 1))
    assert repeats == pytest.approx(math.fsum(p * p for p in probabilities.values()), rel=0.1)


def test_clips_and_their_captions(rng):
    sampled = [sample_clip(rng) for _ in range(2 * SAMPLES)]
    assert sampled_entropy(sampled) == pytest.approx(e.entropy(e.clips()), abs=0.01)
    texts = sampled_entropy(clip_caption(clip, rng) for clip in sampled)
    assert texts == pytest.approx(e.video_entropy(image_first=False), abs=0.03)
    clip = sampled[0]
    wording = sampled_entropy(clip_caption(clip, rng) for _ in range(SAMPLES))
    assert wording == pytest.approx(e.video_entropy(image_first=True), abs=0.01)


def test_steps_of_a_storyboard(rng):
    for item in e.objects()[::40]:
        exact = e.allowed_steps(item)
        drawn = [step for step in (next_step(item, rng) for _ in range(SAMPLES)) if step in exact]
        surprise = -np.log([exact[step] for step in drawn])
        error = surprise.std() / math.sqrt(len(drawn))
        assert sampled_entropy(drawn) == pytest.approx(e.entropy(exact), abs=4 * error)


def test_the_entropy_of_storyboards_is_the_mean_surprise_of_sampled_ones(rng):
    """-ln p of each sampled storyboard's texts, by the step probabilities; its mean is the entropy."""
    one = len(e.objects()) * 3
    steps = {item: e.allowed_steps(item) for item in e.objects()}
    surprises = []
    for _ in range(4000):
        story = sample_storyboard(rng)
        p = 0.1 if not story.subtitles[0] else 0.9 / one / math.exp(e.wording_entropy(1))
        items = [frame.object for frame in story.frames]
        for before, after, words in zip(items, items[1:], story.subtitles[1:], strict=False):
            p *= steps[before][after, words]
        p *= 0.5 * (0.2 / 3 if story.closing else 0.8)
        surprises.append(-math.log(p))
    error = np.std(surprises) / math.sqrt(len(surprises))
    assert np.mean(surprises) == pytest.approx(e.storyboard_entropy(), abs=4 * error)


def test_the_structure_of_a_page(rng):
    def structure(page):
        matched = {image.sentence for image in page.images if image.similarity > 0.32}
        return tuple("image" if n in matched else text for n, text in enumerate(page.sentences))

    pages = [structure(sample_page(rng)) for _ in range(SAMPLES)]
    without_names = sampled_entropy(tuple("image" if s == "image" else "filler" for s in page) for page in pages)
    fillers = [text for page in pages for text in page if text != "image"]
    expected = e.page_entropy() - 2.5 * e.caption_entropy(image_first=True)
    found = without_names + len(fillers) / len(pages) * sampled_entropy(fillers)
    assert found == pytest.approx(expected, abs=0.03)


def test_answers_have_a_choice_of_words_in_descriptions_only(rng):
    described = np.mean([len(conversation(sample_scene(rng), rng)[0][1].split()) > 6 for _ in range(SAMPLES)])
    assert described == pytest.approx(e.DESCRIPTION, abs=0.015)


def test_every_kind_has_a_floor_per_token(tmp_path, monkeypatch):
    train_tokenizer(corpus(np.random.default_rng(0), 3000), tmp_path / "t.model", vocab_size=512)
    from emu_jax.data.tokenizer import Tokenizer

    monkeypatch.setattr(e, "TOKEN_DOCUMENTS", 200)
    tokenizer = Tokenizer.load(str(tmp_path / "t.model"), instruct=True)
    floors = {kind: e.entropy_of(kind, tokenizer, num_image_tokens=4) for kind in e.KINDS}
    assert floors["caption"].nats == pytest.approx(0.7 * math.log(5) + 0.3 * math.log(4))
    assert floors["in context"].nats_per_token == 0
    for kind, floor in floors.items():
        assert 0 <= floor.nats_per_token < math.log(512), kind
        assert floor.tokens > 5
    assert floors["caption before image"].nats_per_token > 4 * floors["caption"].nats_per_token
