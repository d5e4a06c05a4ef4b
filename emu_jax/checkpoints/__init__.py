"""Parameters on disk: the training checkpoints, and the published PyTorch weights in and out."""
