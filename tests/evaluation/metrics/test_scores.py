"""Bootstrap intervals, VisDial's NDCG, the Frechet distance and the captions' fallback."""

from __future__ import annotations

import math
import shutil
import stat

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import captions
from emu_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance, frechet_interval
from emu_jax.evaluation.metrics.meteor import combined_meteor, run_meteor
from emu_jax.evaluation.metrics.scores import bootstrap_interval, mean_score
from emu_jax.evaluation.metrics.visdial import ndcg, score_visdial


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_interval_of_a_function_of_sums():
    pairs = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 20.0]])
    low, high = bootstrap_interval(pairs, lambda means: means[:, 0] / means[:, 1])
    assert 1 / 4 <= low < 9 / 26 < high <= 3 / 4


def test_one_example_has_no_interval():
    assert mean_score([0.5]).interval is None


def test_ndcg_looks_at_as_many_options_as_are_relevant():
    assert ndcg([1, 2, 3, 4], [1.0, 0.5, 0.0, 0.0]) == 1
    # the first two by rank have relevance 0 and 1
    assert ndcg([2, 4, 1, 3], [1.0, 0.5, 0.0, 0.0]) == pytest.approx((1 / math.log2(3)) / (1 + 0.5 / math.log2(3)))


def test_visdial_without_dense_annotations_has_no_ndcg():
    scores = score_visdial([[2, 1, 3], [1, 2, 3]], correct=[0, 0], relevance=[None, None]).scores
    assert scores["MRR"].value == 0.75
    assert scores["R@1"].printed == 50
    assert "NDCG" not in scores


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4))
    one = FeatureStatistics.of(features)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, FeatureStatistics.of(features + 3)) == pytest.approx(36)
    # scaling by 2: trace of C + 4C - 2 * 2C
    assert frechet_distance(one, FeatureStatistics.of(2 * features)) == pytest.approx(
        np.trace(one.covariance) + one.mean @ one.mean
    )
    singular = FeatureStatistics.of(np.repeat(features[:, :1], 4, axis=1))
    assert np.isfinite(frechet_distance(one, singular))
    with pytest.raises(UserError, match="at least 2 images"):
        FeatureStatistics.of(features[:1])


def test_the_interval_of_a_frechet_distance_is_that_of_repeated_experiments():
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 2.0, 0.5])
    reference = FeatureStatistics(np.ones(3), np.diag([2.0, 1.0, 1.5]), 10_000)
    sample = lambda: rng.normal(size=(2000, 3)) * scale
    distances = [frechet_distance(FeatureStatistics.of(sample()), reference) for _ in range(400)]
    low, high = frechet_interval(features := sample(), reference)
    assert low < frechet_distance(FeatureStatistics.of(features), reference) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(distances), rel=0.15)
    one = FeatureStatistics.of(features)
    assert frechet_interval(features, one) == pytest.approx((0, 0), abs=1e-6)
    assert frechet_interval(features[:1], one) is None
    assert np.isfinite(frechet_interval(np.repeat(features[:, :1], 3, axis=1), one)).all()


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR requires Java")
def test_meteor_is_that_of_its_summed_statistics():
    from pycocoevalcap.meteor.meteor import Meteor

    texts = ["a dog runs on the small table", "a red cat", "", "two men walking quickly near a big house"]
    people = [["the dogs are running on tables", "a dog"], ["a red cat"], ["a b"], ["two persons walk to the home"]]
    value, statistics = run_meteor(texts, people)
    official, each = Meteor().compute_score(dict(enumerate(people)), {i: [text] for i, text in enumerate(texts)})
    assert value == official
    np.testing.assert_allclose(combined_meteor(statistics), each, rtol=1e-12)
    np.testing.assert_allclose(combined_meteor(statistics.sum(axis=0)[None]), [official], rtol=1e-12)


def test_captions_without_java_say_that_they_are_not_comparable(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    tokens = captions.tokenize_captions(["A man's dog."], [["a man's dog runs", "the dog"]])
    scored = captions.score_captions(tokens)
    assert scored.protocol["comparable"] is False
    assert "not comparable" in scored.protocol["tokenizer"]
    assert "METEOR" not in scored.scores
    assert "Java is not installed" in caplog.text
    assert tokens.captions == ["a man's dog"]


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer requires Java")
def test_a_line_end_in_a_caption_shifts_no_other():
    texts = [f"a{end}b" for end in "\n\r\v\f\x85\u2028\u2029\0"] + ["", "A man's dog .", ""]
    assert captions.ptb_tokenize(texts) == ["a b"] * 8 + ["", "a man 's dog", ""]
    assert captions.ptb_tokenize([""]) == [""]


def test_a_broken_java_is_one_line(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho cannot start >&2\nexit 1\n")
    java.chmod(java.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match=r"PTB tokenizer failed in Java \(cannot start\)") as caught:
        captions.tokenize_captions(["a"], [["b"]])
    assert "\n" not in str(caught.value)
