"""The demo's autoencoder: 32 x 32 pixels to 8 x 8 latents of four channels.

python -m emu_jax train --config=configs/demo_vae.py --workdir=runs/demo/vae
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The run."""
    config = common.autoencoder(
        vae={"sample_size": 32, "block_out_channels": (16, 32, 64), "layers_per_block": 1, "norm_num_groups": 8},
        unet={
            "block_out_channels": (64, 128),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
            "cross_attention_dim": 128,
        },
        sets=("runs/demo/data/laion_coco",),
        batch_size=32,
        steps=900,
    )
    config.train.optimizer.learning_rate = 2e-3
    config.train.optimizer.weight_decay = 0.0
    config.train.optimizer.warmup_steps = 0.05
    config.train.checkpoint.every_steps = 300
    return config
