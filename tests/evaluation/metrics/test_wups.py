"""WUPS by hand on a small WordNet, through nltk's own reader."""

from __future__ import annotations

import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics.wups import wordnet_lemma, wordnet_similarity, wups
from emu_jax.evaluation.tasks import nextqa


def test_wu_palmer_similarities(wordnet):
    similarity = wordnet_similarity()
    assert similarity("dog", "dog") == 1
    # depths: entity 1, animal 2, dog 3; 2 * 2 / (3 + 3)
    assert similarity("dog", "cat") == pytest.approx(2 / 3)
    assert similarity("dog", "table") == pytest.approx(1 / 3)
    assert similarity("dog", "unheard") == 0


def test_wups_is_the_smaller_of_two_products(wordnet):
    similarity = wordnet_similarity()
    score = lambda a, b, threshold=0.0: wups(a.split(), b.split(), threshold=threshold, similarity=similarity)
    assert score("dog", "dog") == 1
    assert score("dog", "cat") == pytest.approx(2 / 3)
    assert score("dog cat", "dog") == pytest.approx(2 / 3)
    assert score("dog", "cat", 0.9) == pytest.approx(2 / 30)
    assert score("dog unheard", "dog") == 1
    assert score("", "dog") == 0
    assert wordnet_lemma()("dogs") == "dog"


def test_words_are_those_of_the_benchmarks_script(wordnet):
    words = nextqa._words()
    # Its list of stop words has no "no", "up" or "on", and a token of punctuation is a word.
    assert words("The dogs are not on a table.") == ["dog", "not", "on", "table", "."]
    assert words("it's the man's cat") == ["'s", "man", "'s", "cat"]
    assert wordnet_lemma()("tabling") == "tabling"  # stem "tabl" is not in WordNet
    assert wordnet_lemma()("catting") == "cat"  # the stem is


def test_a_missing_wordnet_is_one_line(tmp_path, monkeypatch):
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    with pytest.raises(UserError, match=r"nltk\.downloader wordnet"):
        wordnet_similarity()
