"""A minute of pretraining on a laptop, on sets that `prepare-data` made at 32 x 32 pixels.

    python -m emu_jax train --config=configs/tiny.py --workdir=runs/tiny \
        --config.tokenizer=runs/demo/tokenizer.model --config.data.sets[0].path=runs/demo/data/pairs
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The run."""
    config = common.base("emu_tiny", steps=1000, batch_size=64, length=64, max_images=2)
    config.tokenizer = "runs/demo/tokenizer.model"
    config.data.sets = common.sets({"path": "runs/demo/data/pairs"})
    config.data.predict_boi = True  # from scratch; the release never learns to begin an image
    config.train.optimizer.learning_rate = 2e-3
    config.train.optimizer.b2 = 0.95
    config.train.optimizer.warmup_steps = 0.05
    config.train.checkpoint.every_steps = 250
    config.pretrain.normalize_targets = True
    return config
