"""The warning about collapsed visual embeddings."""

from emu_jax.training.collapse import CollapseMonitor


def test_each_collapse_is_reported_once():
    monitor = CollapseMonitor()
    check = lambda variance, rank=9.0: monitor.check(
        {"visual_embedding_variance": variance, "visual_embedding_rank": rank, "visual_embedding_cosine": 0.5}
    )
    assert check(0.1) is None
    assert check(1.0) is None
    warning = check(0.01)
    assert "COLLAPSE" in warning
    assert "pretrain.detach_regression or pretrain.normalize_targets" in warning
    assert check(0.005) is None
    assert check(0.5) is None
    assert "effective rank 1.20" in check(0.5, rank=1.2)
    assert monitor.check({"loss": 1.0}) is None
