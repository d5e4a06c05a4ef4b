"""The demo's first phase: text losses alone, everything trained, so that the visual embeddings come to mean something.

    python -m emu_jax train --config=configs/demo_captions.py --workdir=runs/demo/captions

Both losses at once would make a small causal former constant; `configs/demo_pretrain.py` goes on from here.
"""

from ml_collections import ConfigDict

from configs import common

# share of the documents drawn from each set that the demo writes
SETS = {
    "laion_coco": 4.0,
    "llava": 3.0,
    "laion2b": 0.4,
    "mmc4": 0.4,
    "webvid": 0.4,
    "storyboards": 0.3,
    "in_context": 0.6,
    "videochat": 0.4,
}


def get_config() -> ConfigDict:
    """The run."""
    config = common.base("emu_tiny", steps=1400, batch_size=40, length=64, max_images=4)
    config.tokenizer = "runs/demo/tokenizer.model"
    config.data.sets = common.sets(
        *({"path": f"runs/demo/data/{name}", "name": name, "weight": weight} for name, weight in SETS.items())
    )
    config.data.predict_boi = True
    config.data.image_first = 1.0  # a caption before its picture teaches nothing yet
    config.data.frames = 4
    config.train.optimizer.learning_rate = 2e-3
    config.train.optimizer.warmup_steps = 0.05
    config.train.optimizer.weight_decay = 0.02
    config.train.optimizer.final_share = 0.02
    config.train.checkpoint.every_steps = 300
    config.pretrain.regression_coefficient = 0.0
    return config
