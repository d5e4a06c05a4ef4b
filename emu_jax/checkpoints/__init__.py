"""Parameters on disk: training checkpoints and model directories, written by Orbax."""
