"""The Frechet distance between two sets of features (Heusel et al. 2017), in float64."""

import dataclasses

import numpy as np

from emu_jax.errors import UserError
from emu_jax.evaluation.metrics.scores import Interval, bootstrap_interval


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Mean `[D]` and covariance `[D, D]` of a set of features, float64, and how many features there were."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, features: np.ndarray) -> "FeatureStatistics":
        """Compute the statistics of features `[n, D]`.

        Raises:
          UserError: fewer than two features.
        """
        if len(features) < 2:
            raise UserError(f"A covariance requires at least 2 images; there are {len(features)}.")
        values = np.asarray(features, np.float64)
        return cls(values.mean(axis=0), np.cov(values, rowvar=False), len(values))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is taken from the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: it stays exact for
    singular covariances.
    """
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"The features have {len(first.mean)} and {len(second.mean)} dimensions; use the same network for both."
        )
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    middle = root @ second.covariance @ root
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh((middle + middle.T) / 2), 0)).sum()
    difference = first.mean - second.mean
    return float(difference @ difference + np.trace(first.covariance) + np.trace(second.covariance) - 2 * trace)


def frechet_interval(features: np.ndarray, reference: FeatureStatistics) -> Interval | None:
    """Return the 95% bootstrap interval of the distance of features `[n, D]` to fixed statistics, to first order.

    Resampled features repeat images, and repeated images increase the distance. So the distance is linearized in the
    mean and the covariance of the features: each image has one influence, with mean 0, and the influences are
    resampled. The derivative by the covariance C1 is I - T, with T = C1^(-1/2) (C1^(1/2) C2 C1^(1/2))^(1/2) C1^(-1/2).

    Returns:
      Lower and upper end; None for fewer than two images.
    """
    if len(features) < 2:
        return None
    own = FeatureStatistics.of(features)
    values, vectors = np.linalg.eigh(own.covariance)
    positive = values > values[-1] * len(values) * np.finfo(np.float64).eps
    roots = np.sqrt(np.where(positive, values, 0))
    root = (vectors * roots) @ vectors.T
    inverse = (vectors * np.divide(1, roots, out=np.zeros_like(roots), where=positive)) @ vectors.T
    middle = root @ reference.covariance @ root
    values, vectors = np.linalg.eigh((middle + middle.T) / 2)
    transport = inverse @ ((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T) @ inverse
    centered = np.asarray(features, np.float64) - own.mean
    slope = np.eye(len(own.mean)) - transport
    influences = 2 * centered @ (own.mean - reference.mean)
    influences += np.einsum("nd,nd->n", centered @ slope, centered) - np.sum(slope * own.covariance)
    change = bootstrap_interval(influences)
    distance = frechet_distance(own, reference)
    return None if change is None else (max(0.0, distance + change[0]), distance + change[1])
