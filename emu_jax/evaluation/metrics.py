"""The measures of the public benchmarks: VQA accuracy, as its evaluation server takes it, and CIDEr-D."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from emu_jax.errors import UserError

# ---- VQA (Antol et al. 2015; VQAv2, OKVQA, VizWiz)

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # the server's code removes no more: it hands a flag over where the count belongs
_CONTRACTED = """\
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""
# Each word with one of its apostrophes left out; the last entry is the server's own slip.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalize_answer(text: str) -> str:
    """An answer as the VQA server compares it.

    normalize_answer("Two dogs.")      -> "2 dogs"
    normalize_answer("the tv/radio")   -> "tv radio"
    normalize_answer("dont, know")     -> "don't know"
    normalize_answer("1,000 people")   -> "1000 people"
    """
    found = text
    between_digits = _DIGIT_COMMA_DIGIT.search(text) is not None
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if beside_space or between_digits else " ")
    found = _FULL_STOP.sub("", found, count=_FULL_STOPS)
    words = [_NUMBERS.get(word, word) for word in found.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """How far an answer agrees with people's (ten in VQAv2), 0..1.

    Each person's answer is left out in turn; three of the others who agree make a full point. Answers are normalised
    only where people's differ, as the server does it.
    """
    if not references:
        raise UserError("An answer is compared with the answers of people; there are none.")
    answer, *others = (re.sub(r"[\n\t]", " ", text).strip() for text in (answer, *references))
    if len(set(others)) > 1:
        answer, *others = (normalize_answer(text) for text in (answer, *others))
    agree = [other == answer for other in others]
    return sum(min(1.0, (sum(agree) - one) / 3) for one in agree) / len(agree)


# ---- CIDEr-D (Vedantam et al. 2015)

_SIGMA = 6.0
_LONGEST = 4
_WORDS = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|(?:(?!n't\b)[\w$%&])+")


def caption_words(text: str) -> list[str]:
    """Lower-case words without punctuation, contractions split, as the Penn Treebank's rules have it.

    caption_words("A man's dog doesn't run.") -> ["a", "man", "'s", "dog", "does", "n't", "run"]

    The published COCO scores use Stanford's tokenizer, which differs only in rarities (abbreviations, fractions).
    """
    return _WORDS.findall(text.lower())


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption, float64 [n], about 0..10; the published number is their mean times 100 (1.124 = 112.4).

    The weights of n-grams come from the references given here, so a score is of the whole set or of none.

    Args:
      captions: one for each image.
      references: people's captions of each image.
    """
    if len(captions) != len(references) or not captions or not all(references):
        raise UserError(f"CIDEr wants references for each caption; there are {len(captions)} and {len(references)}.")
    told = [[_ngrams(caption_words(text)) for text in texts] for texts in references]
    documents = Counter(ngram for texts in told for ngram in set().union(*texts))
    log_images = math.log(len(told))
    weigh = lambda counts: _weighted(counts, documents, log_images)
    return np.array(
        [
            np.mean([_similarity(weigh(_ngrams(caption_words(caption))), weigh(one)) for one in texts]) * 10
            for caption, texts in zip(captions, told, strict=True)
        ]
    )


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(words) - n + 1))


def _weighted(
    counts: Counter[tuple[str, ...]], documents: Counter[tuple[str, ...]], log_images: float
) -> tuple[list[dict[tuple[str, ...], float]], int]:
    """Count x log(images / images with it) by length of the n-gram, and the number of bigrams: the caption's length."""
    vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
    for ngram, count in counts.items():
        vectors[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, documents[ngram])))
    return vectors, sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _similarity(caption: tuple[list[dict], int], reference: tuple[list[dict], int]) -> float:
    """The mean over n of the cosine, weights clipped to the reference's; less where lengths differ."""
    total = 0.0
    for said, right in zip(caption[0], reference[0], strict=True):
        dot = sum(min(weight, right[ngram]) * right[ngram] for ngram, weight in said.items() if ngram in right)
        norms = math.sqrt(sum(w * w for w in said.values()) * sum(w * w for w in right.values()))
        total += dot / norms if norms else 0.0
    return total / _LONGEST * math.exp(-((caption[1] - reference[1]) ** 2) / (2 * _SIGMA**2))
