"""Emu from scratch at 150M parameters (without the token tables), about 20 decoder tokens per parameter.

    python -m emu_jax train --config=configs/scratch_150m.py --workdir=runs/scratch_150m
    python -m emu_jax train --config=configs/scratch_150m.py:both --workdir=runs/scratch_150m_both \
        --config.train.warm_start=runs/scratch_150m/checkpoints/11444
"""

from ml_collections import ConfigDict

from configs import common, pretrain_14b


def get_config(phase: str = "captions") -> ConfigDict:
    """Return the run of a phase: captions, or both losses."""
    return common.scratch(
        pretrain_14b.get_config(),
        vision={"width": 512, "num_layers": 12, "num_heads": 8, "mlp_dim": 2048},
        causal_former={"width": 512, "num_layers": 6, "num_heads": 8, "mlp_dim": 2048},
        decoder={"width": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 2048},
        tokens=3e9,
        phase=phase,
    )
