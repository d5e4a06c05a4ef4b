"""The run that all runs of a scaling study share; `python -m emu_jax scaling plan` sets sizes, steps and rates.

    python -m emu_jax train --config=configs/scaling.py:cpu --workdir=runs/scaling_trial

`cpu` and `one_gpu` read the synthetic shapes world that `python -m emu_jax demo` prepares, `pod` the sets of the paper.
Both losses train from scratch; the regression loss sends no gradient into the vision side and is divided by the
variance of its targets, so that embeddings gain nothing by shrinking.
"""

from ml_collections import ConfigDict

from configs import common, pretrain_14b

SETS = {"laion_coco": ("caption", 4.0), "mmc4": ("interleaved", 1.0), "storyboards": ("storyboard", 1.0),
        "webvid": ("video", 1.0)}  # fmt: skip


def get_config(argument: str = "cpu") -> ConfigDict:
    """Return the run of a preset (cpu, one_gpu or pod), with `,DIR` after it where the demo's data is elsewhere."""
    preset, _, demo = argument.partition(",")
    if preset == "pod":
        return pod()
    return synthetic(demo or "runs/demo", batch_size={"cpu": 16, "one_gpu": 256}[preset])


def synthetic(demo: str, *, batch_size: int) -> ConfigDict:
    """Rows of 128 tokens on 32 x 32 pixels."""
    config = common.base("emu_tiny", steps=1000, batch_size=batch_size, length=128, max_images=5)
    config.tokenizer = f"{demo}/tokenizer.model"
    config.data.sets = common.sets(
        *({"path": f"{demo}/data/{path}", "name": name, "weight": weight} for path, (name, weight) in SETS.items())
    )
    config.data.frames = 4
    return from_scratch(config)


def pod() -> ConfigDict:
    """Rows of 1024 tokens on 224 x 224 pixels, the sets and weights of the paper."""
    config = pretrain_14b.get_config()
    for part in ("vision", "causal_former", "decoder"):
        config.model[part].remat = "dots"
    config.data.batch.batch_size = 256
    config.train.accumulation = 1
    config.samples_per_step = 0
    config.train.optimizer.part_learning_rates = ()
    return from_scratch(config)


def from_scratch(config: ConfigDict) -> ConfigDict:
    """Set the fields that every preset shares."""
    config.data.predict_boi = True
    config.data.image_first = 0.5
    config.pretrain.normalize_targets = True
    config.pretrain.detach_regression = True
    config.train.optimizer.schedule = "wsd"
    config.train.optimizer.b2 = 0.95
    config.train.optimizer.clip_norm = 1.0
    config.train.log_every = 20
    config.train.checkpoint.every_steps = 500
    config.train.checkpoint.keep = 1
    return config
