"""The paper's pretraining with LLaMA-7B: the same vision encoder and causal former, half the decoder.

    python -m emu_jax train --config=configs/pretrain_7b.py --workdir=gs://BUCKET/emu_7b \
        --config.train.warm_start=MODEL_DIR
"""

from ml_collections import ConfigDict

from configs import pretrain_14b


def get_config() -> ConfigDict:
    """Return the run."""
    config = pretrain_14b.get_config()
    config.model.decoder.update(
        {"width": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32, "mlp_dim": 11008}
    )
    return config
