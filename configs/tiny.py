"""Minutes of pretraining on a laptop, on sets at 32 x 32 pixels from the demo or from `prepare-data`.

    python -m emu_jax train --config=configs/tiny.py --workdir=runs/tiny
    python -m emu_jax train --config=configs/tiny.py:both --workdir=runs/tiny_both \
        --config.train.warm_start=runs/tiny/checkpoints/1000
"""

from ml_collections import ConfigDict

from configs import common


def get_config(phase: str = "captions") -> ConfigDict:
    """Return the run of a phase: captions, or both losses."""
    config = common.base("emu_tiny", steps=1000, batch_size=64, length=64, max_images=4)
    config.tokenizer = "runs/demo/tokenizer.model"
    config.data.sets = common.sets({"path": "runs/demo/data/laion_coco"})
    config.train.optimizer.learning_rate = 2e-3
    config.train.optimizer.b2 = 0.95
    config.train.optimizer.warmup_fraction = 0.05
    config.train.checkpoint.every_steps = 250
    return common.from_scratch(config, phase)
