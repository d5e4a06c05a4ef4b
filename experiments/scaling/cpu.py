"""A study on two CPU cores: 1e11 to 1e13 FLOPs, 3e13 held out, on the synthetic shapes world.

python -m emu_jax scaling plan --config=experiments/scaling/cpu.py --study=runs/scaling/cpu
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the fields of `emu_jax.scaling.study.StudyConfig`."""
    return ConfigDict(
        {
            "config": "configs/scaling.py:cpu",
            "form": "isoflop",
            "widths": (16, 24, 32, 40, 48, 64, 80, 96, 128, 160),
            "budgets": (1e11, 3e11, 1e12, 3e12, 1e13, 3e13),
            "tokens": (),
            "tokens_per_param": (0.4, 400.0),
            "held_out": True,
            "seeds": (0, 1, 2),
            "repeated": 1e12,
            "ladder": {"width_per_layer": 32.0, "head_dim": 8, "min_layers": 1},
            "learning_rate": 3e-3,
            "base_width": 64,
            "learning_rate_exponent": 0.5,
            "warmup_steps": 20,
            "min_steps": 60,
            "cooldown_fraction": 0.2,
            "fill": 0.94,  # expected fraction of token positions in use; check it with inspect-data
            "images_per_token": 0.032,
            "vocab_size": 0,
            "hardware": {"name": "two CPU cores", "flops_per_second": 3e9, "chips": 1},
            "overrides": (),
        }
    )
