"""Emu from scratch at 1B parameters (without the token tables), about 20 decoder tokens per parameter.

    python -m emu_jax train --config=configs/scratch_1b.py --workdir=runs/scratch_1b
    python -m emu_jax train --config=configs/scratch_1b.py:both --workdir=runs/scratch_1b_both \
        --config.train.warm_start=runs/scratch_1b/checkpoints/76294
"""

from ml_collections import ConfigDict

from configs import common, pretrain_14b


def get_config(phase: str = "captions") -> ConfigDict:
    """Return the run of a phase: captions, or both losses."""
    return common.scratch(
        pretrain_14b.get_config(),
        vision={"width": 1024, "num_layers": 16, "num_heads": 16, "mlp_dim": 4096},
        causal_former={"width": 1024, "num_layers": 7, "num_heads": 16, "mlp_dim": 4096},
        decoder={"width": 1536, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
        tokens=2e10,
        phase=phase,
    )
