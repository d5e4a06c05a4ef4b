"""Emu from scratch at 400M parameters (without the token tables), about 20 decoder tokens per parameter.

    python -m emu_jax train --config=configs/scratch_400m.py --workdir=runs/scratch_400m
    python -m emu_jax train --config=configs/scratch_400m.py:both --workdir=runs/scratch_400m_both \
        --config.train.warm_start=runs/scratch_400m/checkpoints/30518
"""

from ml_collections import ConfigDict

from configs import common, pretrain_14b


def get_config(phase: str = "captions") -> ConfigDict:
    """Return the run of a phase: captions, or both losses."""
    return common.scratch(
        pretrain_14b.get_config(),
        vision={"width": 768, "num_layers": 14, "num_heads": 12, "mlp_dim": 3072},
        causal_former={"width": 768, "num_layers": 5, "num_heads": 12, "mlp_dim": 3072},
        decoder={"width": 1024, "num_layers": 20, "num_heads": 16, "mlp_dim": 2816},
        tokens=8e9,
        phase=phase,
    )
