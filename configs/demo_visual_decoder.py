"""The demo's U-Net: paints the latents of a picture from the embeddings that Emu predicts for its caption.

python -m emu_jax train --config=configs/demo_visual_decoder.py --workdir=runs/demo/unet
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The run."""
    config = common.visual_decoder(
        examples="runs/demo/data/decoder", decoder="runs/demo/vae/visual_decoder", batch_size=64, steps=2000
    )
    config.train.optimizer.learning_rate = 1e-3
    config.train.optimizer.weight_decay = 0.01
    config.train.optimizer.warmup_steps = 0.05
    config.train.optimizer.ema_decay = 0.995
    config.train.checkpoint.every_steps = 500
    return config
