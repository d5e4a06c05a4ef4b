"""A study on a v5p-64 slice with the paper's data: 1e18 to 1e20 FLOPs, 1e21 held out.

python -m emu_jax scaling plan --config=experiments/scaling/pod.py --study=runs/scaling/pod
python -m emu_jax scaling run --study=runs/scaling/pod --paste=gs://my-bucket/scaling
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the fields of `emu_jax.scaling.study.StudyConfig`."""
    return ConfigDict(
        {
            "config": "configs/scaling.py:pod",
            "form": "isoflop",
            "widths": (384, 512, 640, 768, 896, 1024, 1152, 1280, 1536, 1792, 2048),
            "budgets": (1e18, 3e18, 1e19, 3e19, 1e20, 1e21),
            "tokens": (),
            "tokens_per_param": (2.0, 200.0),
            "held_out": True,
            "seeds": (0, 1, 2),
            "repeated": 1e19,
            "ladder": {"width_per_layer": 64.0, "head_dim": 64, "min_layers": 2},
            "learning_rate": 1e-3,
            "base_width": 768,
            "learning_rate_exponent": 1.0,
            "warmup_steps": 500,
            "min_steps": 1000,
            "cooldown_fraction": 0.2,
            "fill": 0.97,
            "images_per_token": 0.0156,
            "vocab_size": 32004,
            "hardware": {"name": "v5p-64 (32 chips) at 40% of the peak", "flops_per_second": 5.9e15, "chips": 32},
            "overrides": (),
        }
    )
