"""VQA accuracy by its rule, and CIDEr-D against the formulas written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics import caption_words, cider, normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Two dogs.", "2 dogs"),
        ("the tv/radio", "tv radio"),
        ("tv / radio", "tv radio"),
        ("dont, know", "don't know"),
        ("1,000 people", "1000 people"),
        ("2.5", "2.5"),
        ("none", "0"),
        ("An  apple", "apple"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("red-and-white", "red and white"),
        ("Y'alld've", "y'all'd've"),
        ("o'clock", "o'clock"),
    ],
)
def test_answers_are_normalized_as_the_server_does(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_people(agree, accuracy):
    """With 3 of 10 who agree: 7 times 3 others agree (1), 3 times 2 do (2/3)."""
    references = ["red"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert vqa_accuracy("red", references) == pytest.approx(accuracy)


def test_answers_are_normalized_only_where_people_differ():
    assert vqa_accuracy("The Cat.", ["cat"] * 9 + ["a dog"]) == 1
    assert vqa_accuracy("The Cat.", ["cat"] * 10) == 0
    assert vqa_accuracy(" cat\n", ["cat"] * 10) == 1
    assert vqa_accuracy("2", ["two"] * 5 + ["3"] * 5) == 1
    with pytest.raises(UserError, match="there are none"):
        vqa_accuracy("cat", [])


def test_words_of_captions():
    assert caption_words("A man's dog doesn't run, 3 t-shirts.") == [
        "a", "man", "'s", "dog", "does", "n't", "run", "3", "t", "shirts",
    ]  # fmt: skip
    assert caption_words("can't knit") == ["ca", "n't", "knit"]


CAPTIONS = ["a red cat on a mat", "two dogs run run", "a blue bird"]
REFERENCES = [
    ["a red cat sits on a mat", "a cat on the mat"],
    ["two dogs run", "dogs run in the park on a day"],
    ["a small blue bird", "the bird is blue", "a bird"],
]


def by_the_formulas(caption, references, everything):
    """CIDEr-D as the paper defines it, with dense vectors over all n-grams."""
    grams = lambda words, n: [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    scores = []
    for reference in references:
        said, right = caption.split(), reference.split()
        by_length = []
        for n in (1, 2, 3, 4):
            vocabulary = sorted(set(grams(said, n)) | set(grams(right, n)))
            with_it = [sum(any(g in grams(r.split(), n) for r in refs) for refs in everything) for g in vocabulary]
            idf = np.array([math.log(len(everything) / max(1, count)) for count in with_it])
            hypothesis = np.array([grams(said, n).count(g) for g in vocabulary]) * idf
            target = np.array([grams(right, n).count(g) for g in vocabulary]) * idf
            norms = np.linalg.norm(hypothesis) * np.linalg.norm(target)
            by_length.append(np.minimum(hypothesis, target) @ target / norms if norms else 0.0)
        scores.append(10 * np.mean(by_length) * math.exp(-((len(said) - len(right)) ** 2) / 72))
    return np.mean(scores)


def test_cider_equals_the_formulas():
    expected = [by_the_formulas(c, refs, REFERENCES) for c, refs in zip(CAPTIONS, REFERENCES, strict=True)]
    found = cider(CAPTIONS, REFERENCES)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (found > 0.1).all()


def test_cider_knows_its_ends():
    same = [["a red cat on a mat"], ["two dogs run in the park"], ["one blue bird sits still"]]
    np.testing.assert_allclose(cider([texts[0] for texts in same], same), 10.0)
    np.testing.assert_allclose(cider(["xyzzy"] * 3, same), 0.0)


def test_cider_does_not_depend_on_the_order():
    scores = dict(zip(CAPTIONS, cider(CAPTIONS, REFERENCES), strict=True))
    for order in itertools.permutations(range(3)):
        shuffled = cider([CAPTIONS[i] for i in order], [REFERENCES[i] for i in order])
        np.testing.assert_allclose(shuffled, [scores[CAPTIONS[i]] for i in order])


def test_cider_wants_references():
    with pytest.raises(UserError, match="there are 1 and 0"):
        cider(["a"], [])
