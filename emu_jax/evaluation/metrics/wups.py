"""WUPS (Malinowski and Fritz 2014) as NExT-QA's open-ended evaluation computes it, on nltk's WordNet.

The score of two texts is the smaller of two products: for each word of one, its largest Wu-Palmer similarity with a
word of the other, both in their first meaning; words without any similarity are skipped. Below a threshold a similarity
counts a tenth (WUPS@0 has threshold 0, WUPS@0.9 has 0.9).
"""

import functools
from collections.abc import Callable, Sequence

from emu_jax.errors import UserError

_PENALTY = 0.1

Similarity = Callable[[str, str], float]


def wups(prediction: Sequence[str], truth: Sequence[str], *, threshold: float, similarity: Similarity) -> float:
    """Return the similarity of two lists of words, 0..1."""

    def product(words: Sequence[str], others: Sequence[str]) -> float:
        best = [max((_penalized(similarity(a, b), threshold) for b in others), default=0.0) for a in words]
        found = [value for value in best if value > 0]
        return functools.reduce(lambda left, right: left * right, found, 1.0) if found else 0.0

    return min(product(prediction, truth), product(truth, prediction))


def wordnet_similarity() -> Similarity:
    """Return the Wu-Palmer similarity of the first meanings of two words by nltk's WordNet; 1 for equal words.

    Raises:
      UserError: nltk or its WordNet is not there.
    """
    wordnet = _wordnet()

    @functools.cache
    def similarity(first: str, second: str) -> float:
        if first == second:
            return 1.0
        meanings, others = wordnet.synsets(first), wordnet.synsets(second)
        return float(meanings[0].wup_similarity(others[0]) or 0.0) if meanings and others else 0.0

    return similarity


def wordnet_lemma() -> Callable[[str], str]:
    """Return a function that maps a word to its base form by WordNet, or to a stem in WordNet, or to itself."""
    from nltk.stem import PorterStemmer

    wordnet, stem = _wordnet(), PorterStemmer().stem

    @functools.cache
    def lemma(word: str) -> str:
        found = wordnet.morphy(word)
        if found is None and wordnet.synsets(stem(word)):
            return stem(word)
        return found or word

    return lemma


def word_tokenizer() -> Callable[[str], list[str]]:
    """Return nltk's tokenizer of one sentence: "the man's dog." -> "the", "man", "'s", "dog", "."."""
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize


def _wordnet():
    try:
        from nltk.corpus import wordnet
    except ImportError:
        raise UserError("WUPS requires nltk: pip install 'emu-jax[eval]'.") from None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise UserError(
            "WUPS requires nltk's WordNet: python -m nltk.downloader wordnet, or set NLTK_DATA to a folder that holds "
            "corpora/wordnet."
        ) from None
    return wordnet


def _penalized(similarity: float, threshold: float) -> float:
    return similarity * _PENALTY if similarity < threshold else similarity
