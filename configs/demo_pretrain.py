"""The demo's second phase: both losses, the vision side frozen: Emu learns to predict the pictures that it can read.

    python -m emu_jax train --config=configs/demo_pretrain.py --workdir=runs/demo/pretrain \
        --config.train.warm_start=runs/demo/captions/checkpoints/1400
"""

from ml_collections import ConfigDict

from configs import common, demo_captions


def get_config() -> ConfigDict:
    """The run."""
    config = demo_captions.get_config()
    config.data.image_first = 0.4
    config.train.steps = 1000
    config.train.optimizer.learning_rate = 1e-3
    config.pretrain.regression_coefficient = 1.0
    config.pretrain.normalize_targets = True
    config.pretrain.trainable = common.LANGUAGE_SIDE
    return config
