"""VQA accuracy (Antol et al. 2015) for VQAv2, OK-VQA and VizWiz, by two protocols.

`release` is the code that BAAI released with Emu: the prediction is always processed; the ten answers of people only
have their punctuation processed, and only if they are not all equal. `official` is the code of the VQA evaluation
server: both sides are processed in full if the answers of people are not all equal, and otherwise neither side.
"""

import enum
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics.scores import Score, Scored, bootstrap_interval

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32  # the official code passes the flag re.UNICODE (32) in the position of the count
_DIGITS = 6  # decimals of a percentage
_CONTRACTED = """\
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""
# Each word without one of its apostrophes; the last entry is an error of the official table.
_CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTED.split()
    for position, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


class VqaProtocol(enum.Enum):
    """The code whose accuracy is computed."""

    RELEASE = "release"
    OFFICIAL = "official"


def process_punctuation(text: str) -> str:
    """Replace or remove punctuation.

    process_punctuation("tv/radio")      -> "tv radio"
    process_punctuation("tv / radio")    -> "tv  radio"
    process_punctuation("1,000 people")  -> "1000 people"
    """
    result = text
    between_digits = _DIGIT_COMMA_DIGIT.search(text) is not None
    for sign in _PUNCTUATION:
        next_to_space = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if next_to_space or between_digits else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)


def process_digits_and_articles(text: str) -> str:
    """Lower the case, write number words as digits, drop articles and restore the apostrophes of contractions.

    process_digits_and_articles("Two dogs dont")  -> "2 dogs don't"
    """
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(
    prediction: str,
    answers: Sequence[str],
    *,
    protocol: VqaProtocol = VqaProtocol.RELEASE,
    stem: Callable[[str], str] | None = None,
) -> float:
    """Return the agreement of a prediction with people's answers, 0..1.

    Each answer is left out in turn; three of the others that agree count as 1.

    Args:
      stem: applied to a complete string after its punctuation is processed, as in OK-VQA.

    Raises:
      UserError: there are no answers.
    """
    if not answers:
        raise UserError("A question has no answers of people; use a split with annotations.")

    def punctuated(text: str) -> str:
        processed = process_punctuation(text)
        return stem(processed) if stem else processed

    prediction, answers = _stripped(prediction), list(answers)
    if protocol is VqaProtocol.RELEASE:
        prediction = process_digits_and_articles(punctuated(prediction))
        if len(set(answers)) > 1:
            answers = [punctuated(answer) for answer in answers]
    else:
        answers = [_stripped(answer) for answer in answers]
        if len(set(answers)) > 1:
            prediction = process_digits_and_articles(punctuated(prediction))
            answers = [process_digits_and_articles(punctuated(answer)) for answer in answers]
    agrees = [answer == prediction for answer in answers]
    accuracies = [min(1.0, (sum(agrees) - agree) / 3) for agree in agrees]
    return sum(accuracies) / len(accuracies)


def score_vqa(
    accuracies: Sequence[float],
    *,
    question_ids: Sequence[int | str],
    groups: dict[str, Sequence[str]],
) -> Scored:
    """Return the accuracy over all questions and for each group, in percent.

    Args:
      accuracies: of each question, 0..1.
      groups: by name ("per_answer_type"), the group of each question.
    """
    scores: dict[str, Score | dict[str, Score]] = {"overall": _percent(accuracies)}
    for name, labels in groups.items():
        members: dict[str, list[float]] = defaultdict(list)
        for label, accuracy in zip(labels, accuracies, strict=True):
            members[label].append(accuracy)
        scores[name] = {label: _percent(values) for label, values in members.items()}
    each = {str(i): round(100 * accuracy, _DIGITS) for i, accuracy in zip(question_ids, accuracies, strict=True)}
    return Scored(scores, list(accuracies), {"each": each})


def porter_stemmer() -> Callable[[str], str]:
    """Return nltk's Porter stemmer, which the OK-VQA protocol applies to complete strings.

    Raises:
      UserError: nltk is not installed.
    """
    try:
        from nltk.stem import PorterStemmer
    except ImportError:
        raise UserError("OK-VQA is scored with nltk's Porter stemmer: pip install 'emu-jax[eval]'.") from None
    return PorterStemmer().stem


def _percent(accuracies: Sequence[float]) -> Score:
    value = round(100 * float(sum(accuracies)) / len(accuracies), _DIGITS)
    return Score(value, len(accuracies), interval=bootstrap_interval([100 * a for a in accuracies]))


def _stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
