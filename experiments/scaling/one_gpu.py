"""A study on one GPU: 1e15 to 1e17 FLOPs, 3e17 held out, on the synthetic shapes world.

python -m emu_jax scaling plan --config=experiments/scaling/one_gpu.py --study=runs/scaling/one_gpu
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the fields of `emu_jax.scaling.study.StudyConfig`."""
    return ConfigDict(
        {
            "config": "configs/scaling.py:one_gpu",
            "form": "isoflop",
            "widths": (64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768),
            "budgets": (1e15, 3e15, 1e16, 3e16, 1e17, 3e17),
            "tokens": (),
            "tokens_per_param": (0.5, 500.0),
            "held_out": True,
            "seeds": (0, 1, 2),
            "repeated": 1e16,
            "ladder": {"width_per_layer": 48.0, "head_dim": 32, "min_layers": 1},
            "learning_rate": 1e-3,
            "base_width": 256,
            "learning_rate_exponent": 1.0,
            "warmup_steps": 100,
            "min_steps": 300,
            "cooldown_fraction": 0.2,
            "fill": 0.94,
            "images_per_token": 0.032,
            "vocab_size": 0,
            "hardware": {"name": "one H100", "flops_per_second": 1e14, "chips": 1},
            "overrides": ("model.dtype=bfloat16",),
        }
    )
