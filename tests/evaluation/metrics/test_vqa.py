"""VQA accuracy by both protocols."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics.vqa import (
    VqaProtocol,
    porter_stemmer,
    process_digits_and_articles,
    process_punctuation,
    vqa_accuracy,
)


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
        ("." * 40, "." * 8),  # 32 full stops at most
    ],
)
def test_answers_are_processed_as_the_server_does(text, normal):
    assert process_digits_and_articles(process_punctuation(text)) == normal


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
@pytest.mark.parametrize("protocol", VqaProtocol)
def test_ten_people(agree, accuracy, protocol):
    """With 3 of 10 who agree: 7 times 3 others agree (1), 3 times 2 do (2/3)."""
    references = ["red"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert vqa_accuracy("red", references, protocol=protocol) == pytest.approx(accuracy)


def test_the_protocols_differ():
    two = ["two"] * 5 + ["3"] * 5
    assert vqa_accuracy("two", two, protocol=VqaProtocol.RELEASE) == 0  # becomes "2", and "two" stays
    assert vqa_accuracy("two", two, protocol=VqaProtocol.OFFICIAL) == 1
    same = ["cat"] * 10
    assert vqa_accuracy("The Cat.", same, protocol=VqaProtocol.RELEASE) == 1
    assert vqa_accuracy("The Cat.", same, protocol=VqaProtocol.OFFICIAL) == 0


def test_stemming_meets_inflected_answers():
    people = ["surfing"] * 9 + ["swimming"]
    assert vqa_accuracy("surf", people) == 0
    assert vqa_accuracy("surf", people, stem=porter_stemmer()) == 1


def test_a_question_without_answers():
    with pytest.raises(UserError, match="no answers of people"):
        vqa_accuracy("cat", [])


@given(st.text(max_size=30), st.lists(st.text(max_size=12), min_size=1, max_size=10), st.sampled_from(VqaProtocol))
def test_any_text_has_an_accuracy(prediction, answers, protocol):
    assert 0 <= vqa_accuracy(prediction, answers, protocol=protocol) <= 1
