"""Emu from scratch at 50M parameters (without the token tables), about 20 decoder tokens per parameter.

    python -m emu_jax train --config=configs/scratch_50m.py --workdir=runs/scratch_50m
    python -m emu_jax train --config=configs/scratch_50m.py:both --workdir=runs/scratch_50m_both \
        --config.train.warm_start=runs/scratch_50m/checkpoints/3815
"""

from ml_collections import ConfigDict

from configs import common, pretrain_14b


def get_config(phase: str = "captions") -> ConfigDict:
    """Return the run of a phase: captions, or both losses."""
    return common.scratch(
        pretrain_14b.get_config(),
        vision={"width": 384, "num_layers": 8, "num_heads": 6, "mlp_dim": 1536},
        causal_former={"width": 384, "num_layers": 4, "num_heads": 6, "mlp_dim": 1536},
        decoder={"width": 512, "num_layers": 8, "num_heads": 8, "mlp_dim": 1408},
        tokens=1e9,
        phase=phase,
    )
