"""Emu's own pretraining: EVA-CLIP g, a new causal former and LLaMA-13B, both losses, everything trained.

    python -m emu_jax train --config=configs/pretrain_14b.py --workdir=gs://BUCKET/emu_14b \
        --config.train.warm_start=MODEL_DIR

MODEL_DIR is what `import-torch` makes of the published EVA-CLIP and LLaMA weights. The mesh shards parameters over all
chips of a slice; several slices repeat it (data parallel across them).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The run."""
    return common.paper()
