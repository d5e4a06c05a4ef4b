"""Emu's visual decoder (Sun et al., ICLR 2024): train the U-Net of Stable Diffusion v1.5 to decode Emu's embeddings.

    python -m emu_jax train --config=configs/visual_decoder.py --workdir=gs://BUCKET/decoder
    python -m emu_jax train --config=configs/visual_decoder.py:encoded --workdir=...
    python -m emu_jax train --config=configs/visual_decoder.py:stored --workdir=...

In each step, the frozen autoencoder encodes an image to latents. The frozen Emu predicts the image's embeddings from
its caption, as in the paper (`predicted`), or encodes the image itself, as in Emu2 (`encoded`). With `stored`, both are
read from the output of `prepare-decoder-data`, which gives the same run. The sets are stored at 512 pixels:

    for SET in laion_coco laion_aesthetics; do python -m emu_jax prepare-data --source=pairs --input=$SET \\
        --output=data/$SET --image-size=512 --crop --store=jpeg; done
    for SET in laion_coco laion_aesthetics; do python -m emu_jax prepare-decoder-data --checkpoint=models/emu \
        --decoder=models/stable-diffusion-v1-5 --sets data/$SET --output=data/decoder/$SET; done

Values without a comment are the paper's. docs/recipe.md lists all of them.
"""

from ml_collections import ConfigDict

from configs import common

SETS = {"laion_coco": 7.0, "laion_aesthetics": 2.0}


def get_config(inputs: str = "predicted") -> ConfigDict:
    """Return the run, with inputs that are predicted, encoded or stored."""
    if inputs == "stored":
        source = {"examples": tuple({"path": f"data/decoder/{name}", "weight": w} for name, w in SETS.items())}
    else:
        sets = tuple({"path": f"data/{name}", "weight": weight} for name, weight in SETS.items())
        # Longer captions are dropped. The stored path drops them in prepare-decoder-data.
        source = {"computed": {"emu": "models/emu", "sets": sets, "condition": inputs, "max_caption_length": 150}}
    config = common.visual_decoder(
        decoder="models/stable-diffusion-v1-5",
        batch_size=1600,  # 50 on each of 32 GPUs
        steps=15_000,
        **source,
    )
    config.training.condition_dropout = 0.1
    config.training.dtype = "bfloat16"  # not published; parameters and moments are float32
    config.training.remat = "full"

    optimizer = config.train.optimizer
    optimizer.learning_rate = 1e-4
    optimizer.warmup_steps = 5_000
    optimizer.schedule = "piecewise"
    optimizer.boundaries = (10_000, 14_000)
    optimizer.values = (0.5, 0.1)
    optimizer.b1, optimizer.b2 = 0.9, 0.999
    optimizer.eps = 1e-6  # not published
    optimizer.weight_decay = 1e-2
    optimizer.clip_norm = 1.0  # not published

    config.train.checkpoint.every_steps = 1_000
    # The paper mentions neither an average of the weights (train.optimizer.ema_decay) nor training.min_snr_gamma.
    return config
