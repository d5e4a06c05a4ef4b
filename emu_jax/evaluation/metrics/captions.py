"""CIDEr, BLEU, ROUGE-L and METEOR by pycocoevalcap, on captions tokenized by Stanford's PTB tokenizer."""

import dataclasses
import functools
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics.meteor import combined_meteor, run_meteor
from emu_jax.evaluation.metrics.scores import HUNDREDFOLD, Score, Scored, bootstrap_interval

log = logging.getLogger(__name__)

PTB = "PTB (Stanford CoreNLP 3.4.1)"
FALLBACK = "regular expression (Java is missing: not comparable with published numbers)"
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_LINE_END = re.compile("[\n\r\v\f\u2028\u2029]")  # of Java's tokenizer; one in a caption would shift all later ones
_TINY, _SMALL = 1e-15, 1e-9  # as in BLEU's official code


@dataclasses.dataclass(frozen=True)
class TokenizedCaptions:
    """Captions and people's captions of the same images, as tokens with single spaces."""

    captions: Sequence[str]
    references: Sequence[Sequence[str]]
    tokenizer: str

    def rows(self, indices: Sequence[int]) -> "TokenizedCaptions":
        """Return those of some images."""
        return TokenizedCaptions(
            [self.captions[i] for i in indices], [self.references[i] for i in indices], self.tokenizer
        )


def tokenize_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> TokenizedCaptions:
    """Tokenize with Stanford's PTB tokenizer, or with a regular expression if Java is missing.

    Raises:
      UserError: Java fails.
    """
    tokenizer = PTB if shutil.which("java") else FALLBACK
    flat = [*captions, *(text for texts in references for text in texts)]
    if tokenizer is PTB:
        tokens = ptb_tokenize(flat)
    else:
        log.warning(
            "Java is not installed: captions are tokenized by a regular expression, METEOR is left out, and the scores "
            "are not comparable with published ones. On Debian: apt install default-jre-headless."
        )
        tokens = [" ".join(_WORD.findall(text.lower())) for text in flat]
    rest = iter(tokens[len(captions) :])
    return TokenizedCaptions(tokens[: len(captions)], [[next(rest) for _ in texts] for texts in references], tokenizer)


def score_captions(tokens: TokenizedCaptions, *, meteor: bool = True) -> Scored:
    """Return the scores of captions, each with people's captions of the same image.

    The weights of CIDEr come from the references given here: a subset of the images has another CIDEr.

    Args:
      meteor: compute METEOR too, unless Java is missing.

    Raises:
      UserError: pycocoevalcap is not installed, or Java fails.
    """
    cider_scorer, bleu_scorer, rouge = _official_scorers()
    captions, references = tokens.captions, tokens.references
    for caption, texts in zip(captions, references, strict=True):
        cider_scorer += (caption, texts)
        bleu_scorer += (caption, texts)
    cider, cider_each = cider_scorer.compute_score()
    bleu, _ = bleu_scorer.compute_score(option="closest", verbose=0)
    rouge_each = [rouge.calc_score([caption], texts) for caption, texts in zip(captions, references, strict=True)]
    count = len(captions)
    statistics = _bleu_statistics(bleu_scorer.ctest)
    scores = {"CIDEr": Score(float(cider), count, 100, HUNDREDFOLD, bootstrap_interval(cider_each))}
    for order in (1, 2, 3, 4):
        interval = bootstrap_interval(statistics * count, functools.partial(_bleu, order=order))
        scores[f"BLEU-{order}"] = Score(float(bleu[order - 1]), count, 100, HUNDREDFOLD, interval)
    scores["ROUGE-L"] = Score(float(np.mean(rouge_each)), count, 100, HUNDREDFOLD, bootstrap_interval(rouge_each))
    if meteor and tokens.tokenizer is PTB:
        value, meteor_statistics = run_meteor(captions, references)
        interval = bootstrap_interval(meteor_statistics * count, combined_meteor)
        scores["METEOR"] = Score(value, count, 100, HUNDREDFOLD, interval)
    return Scored(
        scores,
        [float(value) for value in cider_each],
        {"CIDEr_each": [float(value) for value in cider_each]},
        {"tokenizer": tokens.tokenizer, "comparable": tokens.tokenizer is PTB},
    )


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Return texts as lower-case PTB tokens with single spaces, without punctuation.

    Raises:
      UserError: Java fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("\n".join(_LINE_END.sub(" ", text) for text in texts), encoding="utf-8", newline="\n")
        command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", file]
        done = subprocess.run(list(map(str, command)), capture_output=True)
    lines = done.stdout.decode("utf-8").split("\n")
    if done.returncode or len(lines) not in (len(texts), len(texts) + 1):  # with or without a final line end
        reason = done.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise UserError(f"The PTB tokenizer failed in Java ({' '.join(reason) or 'no message'}); see `java -version`.")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in lines[: len(texts)]]


def _official_scorers():
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider_scorer import CiderScorer
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise UserError("Captions are scored with pycocoevalcap: pip install 'emu-jax[eval]'.") from None
    return CiderScorer(n=4, sigma=6.0), BleuScorer(n=4), Rouge()


def _bleu_statistics(comparisons: Sequence[dict]) -> np.ndarray:
    """Return `[n, 10]`: matched and possible n-grams of orders 1 to 4, length, length of the closest reference."""
    closest = [min((abs(length - c["testlen"]), length) for length in c["reflen"])[1] for c in comparisons]
    return np.array(
        [[*c["correct"], *c["guess"], c["testlen"], reflen] for c, reflen in zip(comparisons, closest, strict=True)],
        np.float64,
    )


def _bleu(totals: np.ndarray, *, order: int) -> np.ndarray:
    """Return corpus BLEU from summed statistics `[R, 10]`."""
    precisions = (totals[:, :order] + _TINY) / (totals[:, 4 : 4 + order] + _SMALL)
    ratio = (totals[:, 8] + _TINY) / (totals[:, 9] + _SMALL)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.maximum(ratio, _SMALL)), 1.0)
    return np.prod(precisions, axis=1) ** (1 / order) * penalty
