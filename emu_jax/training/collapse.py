"""Detect when the visual embeddings become nearly the same for all images.

Trained from scratch with both losses from the first step, a causal former can make its embeddings constant: the
regression loss falls to zero, the model never learns captions, and the total loss still looks healthy.
"""

from collections.abc import Mapping
from typing import Any

MIN_VARIANCE_RATIO = 0.02  # of the highest variance logged so far; a healthy run stays well above
MIN_EFFECTIVE_RANK = 1.5


class CollapseMonitor:
    """Compare the metrics of `losses.collapse_monitors` with the best values of the run so far."""

    def __init__(self) -> None:
        self._best_variance = 0.0
        self._collapsed = False

    def get_state(self) -> dict[str, Any]:
        """Return the best variance and the last finding, as a JSON value."""
        return {"best_variance": self._best_variance, "collapsed": self._collapsed}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `get_state`."""
        self._best_variance, self._collapsed = float(state["best_variance"]), bool(state["collapsed"])

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """Return a warning on the first call that finds a collapse; None on later calls, or without a collapse."""
        variance = metrics.get("visual_embedding_variance")
        rank = metrics.get("visual_embedding_rank")
        cosine = metrics.get("visual_embedding_cosine", float("nan"))
        if variance is None or rank is None or variance != variance:
            return None
        self._best_variance = max(self._best_variance, variance)
        reported = self._collapsed
        self._collapsed = variance < MIN_VARIANCE_RATIO * self._best_variance or rank < MIN_EFFECTIVE_RANK
        if reported or not self._collapsed:
            return None
        return (
            f"COLLAPSE: the visual embeddings hardly depend on the image (variance {variance:.2g}, best so far "
            f"{self._best_variance:.2g}; effective rank {rank:.2f}; cosine {cosine:.4f}). The regression loss falls "
            "without learning anything, and captions stop improving. Train captions first (stage caption_warmup), then "
            "both losses with the vision side frozen; or set pretrain.detach_regression or pretrain.normalize_targets."
        )
