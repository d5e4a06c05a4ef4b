"""Emu's visual decoder (Sun et al., ICLR 2024): the U-Net of Stable Diffusion v1.5 learns to paint Emu's embeddings.

    python -m emu_jax train --config=configs/visual_decoder.py --workdir=gs://BUCKET/decoder
    python -m emu_jax train --config=configs/visual_decoder.py:encoded --workdir=...
    python -m emu_jax train --config=configs/visual_decoder.py:stored --workdir=...

In every step the frozen Emu predicts the embeddings of each picture from its caption (as in the paper), or with
`encoded` embeds the picture itself (Emu2's autoencoding), and the frozen autoencoder makes its latents. `stored` reads
both as `prepare-decoder-data` wrote them once, and gives the same run:

    for SET in laion_coco laion_aesthetics; do python -m emu_jax prepare-decoder-data --checkpoint=models/emu \
        --decoder=models/stable-diffusion-v1-5 --sets data/$SET --output=data/decoder/$SET; done
"""

from ml_collections import ConfigDict

from configs import common

SETS = {"laion_coco": 7.0, "laion_aesthetics": 2.0}


def get_config(inputs: str = "predicted") -> ConfigDict:
    """The run with its inputs: predicted, encoded or stored."""
    if inputs == "stored":
        source = {"examples": tuple({"path": f"data/decoder/{name}", "weight": w} for name, w in SETS.items())}
    else:
        sets = tuple({"path": f"data/{name}", "weight": weight} for name, weight in SETS.items())
        source = {"computed": {"emu": "models/emu", "sets": sets, "condition": inputs}}
    config = common.visual_decoder(
        decoder="models/stable-diffusion-v1-5",
        batch_size=1600,  # 50 on each of 32 GPUs
        steps=15_000,
        **source,
    )
    config.training.dtype = "bfloat16"  # not published; parameters and moments are float32
    config.training.remat = "full"
    config.train.optimizer.learning_rate = 1e-4
    config.train.optimizer.warmup_steps = 5_000
    config.train.optimizer.schedule = "piecewise"
    config.train.optimizer.boundaries = (10_000, 14_000)
    config.train.optimizer.values = (0.5, 0.1)
    config.train.optimizer.b2 = 0.999
    config.train.optimizer.weight_decay = 1e-2
    config.train.checkpoint.every_steps = 1_000
    # Neither published nor used: an average of the weights (train.optimizer.ema_decay) and training.min_snr_gamma.
    return config
