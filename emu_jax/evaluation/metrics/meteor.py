"""METEOR 1.5 (Denkowski and Lavie 2014) by the Java program of pycocoevalcap, with the statistics of each caption."""

from collections.abc import Sequence

import numpy as np

from emu_jax.errors import UserError

# Of Java's program for English: weights of exact, stem, synonym and paraphrase matches, and four parameters.
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def run_meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """Return METEOR over all captions, and the additive statistics `[n, 23]` of each.

    Raises:
      UserError: Java fails.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    try:
        meteor = Meteor()
        lines = [meteor._stat(caption, texts) for caption, texts in zip(captions, references, strict=True)]
        statistics = np.array([line.split() for line in lines], np.float64)
        meteor.meteor_p.stdin.write((" ||| ".join(["EVAL", *lines]) + "\n").encode())
        meteor.meteor_p.stdin.flush()
        each_and_all = [float(meteor.meteor_p.stdout.readline()) for _ in range(len(lines) + 1)]
    except (OSError, ValueError) as error:
        raise UserError(f"METEOR failed in Java ({error}); it requires 2 GB of memory.") from None
    identical = (statistics[:, 20] == 1) & np.all(statistics[:, 21:23] == statistics[:, 0:2], axis=1)
    statistics[identical, 20] = 0  # Java's program does not count the chunk of a caption that equals its reference
    return each_and_all[-1], statistics


def combined_meteor(totals: np.ndarray) -> np.ndarray:
    """Return METEOR from summed statistics `[R, 23]`.

    The statistics are: lengths of caption and reference, function words in both, then for each kind of match the
    matched content words and function words in both, chunks, and matched words in both.
    """
    lengths, function_words = totals[:, 0:2], totals[:, 2:4]
    matches = totals[:, 4:20].reshape(-1, 4, 2, 2)  # kind, content or function, caption or reference
    content, function = np.einsum("rkps,k->prs", matches, _WEIGHTS)
    sizes = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    precision, recall = (_ratio(_DELTA * content + (1 - _DELTA) * function, sizes)).T
    mean = _ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = _ratio(totals[:, 20], totals[:, 21:23].mean(axis=1))
    return mean * (1 - _GAMMA * fragmentation**_BETA)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
