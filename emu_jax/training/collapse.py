"""The loud warning when the visual embeddings stop telling images apart (DESIGN, Collapse)."""

from collections.abc import Mapping


class CollapseWatch:
    """Compares the monitors of `losses.collapse_monitors` with the best that the run has shown."""

    def __init__(self, *, variance_ratio: float, least_rank: float) -> None:
        self._variance_share, self._least_rank = variance_ratio, least_rank
        self._best_variance = 0.0
        self._warned = False

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """The warning, once for each fall; None while all is well or nothing is measured."""
        variance = metrics.get("visual_embedding_variance")
        rank = metrics.get("visual_embedding_rank")
        cosine = metrics.get("visual_embedding_cosine", float("nan"))
        if variance is None or rank is None or variance != variance:
            return None
        self._best_variance = max(self._best_variance, variance)
        fallen = variance < self._variance_share * self._best_variance or rank < self._least_rank
        if not fallen:
            self._warned = False
            return None
        if self._warned:
            return None
        self._warned = True
        return (
            f"COLLAPSE: the visual embeddings hardly depend on the image (variance {variance:.2g}, best so far "
            f"{self._best_variance:.2g}; effective rank {rank:.2f}; cosine {cosine:.4f}). The regression loss falls "
            "for nothing and captions stop learning. Train captions first (stage caption_warmup), then both losses "
            "with the vision side frozen, or set detach_regression or normalize_targets."
        )
