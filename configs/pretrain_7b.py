"""The paper's recipe on LLaMA-7B: the same vision encoder and causal former, half the decoder.

    python -m emu_jax train --config=configs/pretrain_7b.py --workdir=gs://BUCKET/emu_7b \
        --config.train.warm_start=MODEL_DIR
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The run."""
    config = common.paper()
    config.model.decoder.update(
        {"width": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32, "mlp_dim": 11008}
    )
    return config
