"""Retrieval metrics of VisDial v1.0: MRR, recall, mean rank, and NDCG on the dense annotations."""

from collections.abc import Sequence

import numpy as np

from emu_jax.evaluation.metrics.scores import HUNDREDFOLD, Score, Scored, mean_score

_RECALLS = (1, 5, 10)


def ndcg(ranks: Sequence[int], relevance: Sequence[float]) -> float:
    """Return the normalized discounted cumulative gain of one round, over as many options as have any relevance.

    Args:
      ranks: rank of each option, from 1.
      relevance: of each option, 0..1.
    """
    gains = np.asarray(relevance, np.float64)
    count = int(np.count_nonzero(gains))
    discounts = 1 / np.log2(np.arange(count) + 2)
    ranked = gains[np.argsort(np.asarray(ranks), kind="stable")][:count]
    ideal = np.sort(gains)[::-1][:count]
    return float(ranked @ discounts / (ideal @ discounts)) if count else 0.0


def score_visdial(
    ranks: Sequence[Sequence[int]], *, correct: Sequence[int], relevance: Sequence[Sequence[float] | None]
) -> Scored:
    """Return all metrics over rounds.

    Args:
      ranks: of each round, the rank of each option.
      correct: of each round, the index of the true answer.
      relevance: of each round, the dense annotation; None where the round has none.
    """
    found = [row[index] for row, index in zip(ranks, correct, strict=True)]
    reciprocal = [1 / rank for rank in found]
    scores: dict[str, Score] = {"MRR": mean_score(reciprocal, scale=100, unit=HUNDREDFOLD)}
    for k in _RECALLS:
        scores[f"R@{k}"] = mean_score([float(rank <= k) for rank in found], scale=100, unit=HUNDREDFOLD)
    scores["mean_rank"] = mean_score(found, unit="rank")
    dense = [ndcg(row, gains) for row, gains in zip(ranks, relevance, strict=True) if gains is not None]
    if dense:
        scores["NDCG"] = mean_score(dense, scale=100, unit=HUNDREDFOLD)
    return Scored(scores, reciprocal)
