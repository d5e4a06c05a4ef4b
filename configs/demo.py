"""The four training runs of the demo, on the data that `python -m emu_jax demo` writes to runs/demo.

python -m emu_jax train --config=configs/demo.py:captions --workdir=runs/demo/captions
python -m emu_jax train --config=configs/demo.py:pretrain --workdir=runs/demo/pretrain
python -m emu_jax train --config=configs/demo.py:vae --workdir=runs/demo/vae
python -m emu_jax train --config=configs/demo.py:unet --workdir=runs/demo/unet
"""

from ml_collections import ConfigDict

from configs import common

CAPTION_STEPS = 800

# Sampling weights of the data sets: first for captions, then for both losses.
CAPTION_WEIGHTS = {
    "laion_coco": 6.0,
    "llava": 3.0,
    "laion2b": 0.1,
    "mmc4": 0.1,
    "webvid": 0.15,
    "storyboards": 0.1,
    "in_context": 0.15,
    "videochat": 0.15,
}
PRETRAIN_WEIGHTS = {
    "laion_coco": 4.0,
    "llava": 2.0,
    "laion2b": 0.3,
    "mmc4": 0.3,
    "webvid": 0.4,
    "storyboards": 0.3,
    "in_context": 0.8,
    "videochat": 0.4,
}

# Kernels for Muon, at four times the learning rate of Adam or more. With only Adam, the accuracy on shapes stays at
# chance three times as long.
MATRICES = (r"blocks/.*kernel$", r"^causal_former/projection/kernel$")
CONVOLUTIONS = (r"(conv1|conv2|sample/conv)/kernel$", r"attention/\w+/kernel$", r"project_(in|out)/kernel$")


def get_config(argument: str = "captions") -> ConfigDict:
    """Return the run of a phase: captions, pretrain, vae or unet; "PHASE,DIR" reads from DIR instead of runs/demo."""
    phase, _, demo = argument.partition(",")
    return {"captions": captions, "pretrain": pretrain, "vae": vae, "unet": unet}[phase](demo or "runs/demo")


def captions(demo: str) -> ConfigDict:
    """Return the first run: only the text loss, all parameters trained, until the embeddings are informative.

    With both losses from the start, the outputs of a small causal former become constant (`training/collapse.py`).
    """
    config = common.base("emu_tiny", steps=CAPTION_STEPS, batch_size=16, length=128, max_images=5)
    config.tokenizer = f"{demo}/tokenizer.model"
    config.instruct = True
    config.data.sets = _sets(demo, CAPTION_WEIGHTS)
    config.data.predict_boi = True  # learn to start an image; the released Emu never does
    config.data.image_first = 1.0  # without the regression loss, a caption before its image teaches nothing
    config.data.frames = 4
    config.pretrain.regression_weight = 0.0
    config.train.optimizer.learning_rate = 1e-3
    _use_muon(config, MATRICES, learning_rate=4e-3)
    config.train.optimizer.warmup_fraction = 0.05
    config.train.optimizer.weight_decay = 0.02
    config.train.optimizer.final_fraction = 0.02
    config.train.checkpoint.every_steps = 300
    return config


def pretrain(demo: str) -> ConfigDict:
    """Return the second run: both losses, with the vision side frozen."""
    config = captions(demo)
    config.data.sets = _sets(demo, PRETRAIN_WEIGHTS)
    config.data.image_first = 0.4
    config.train.steps = 400
    config.train.warm_start = f"{demo}/captions/checkpoints/{CAPTION_STEPS}"
    config.pretrain.regression_weight = 1.0
    config.pretrain.normalize_targets = True
    config.pretrain.trainable = common.LANGUAGE_SIDE
    return config


def vae(demo: str) -> ConfigDict:
    """Return the run of the autoencoder: 32 x 32 pixels to 8 x 8 latents with four channels."""
    config = common.autoencoder(
        vae={"sample_size": 32, "block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 4},
        unet={
            "block_out_channels": (48, 96),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "norm_num_groups": 16,
            "cross_attention_dim": 128,
        },
        sets=(f"{demo}/data/laion_coco",),
        batch_size=32,
        steps=500,
    )
    config.schedule.prediction_type = "v_prediction"  # with few sampling steps, colors are better than with noise
    config.train.optimizer.learning_rate = 2e-3
    _use_muon(config, CONVOLUTIONS, learning_rate=8e-3)
    config.train.optimizer.weight_decay = 0.0
    config.train.optimizer.warmup_fraction = 0.05
    config.train.checkpoint.every_steps = 300
    return config


def unet(demo: str) -> ConfigDict:
    """Return the run of the U-Net: decode the embeddings that Emu predicts for a caption."""
    config = common.visual_decoder(
        examples=f"{demo}/data/decoder", decoder=f"{demo}/vae/visual_decoder", batch_size=32, steps=1000
    )
    config.train.optimizer.learning_rate = 1e-3
    _use_muon(config, CONVOLUTIONS, learning_rate=4e-3)
    config.train.optimizer.weight_decay = 0.01
    config.train.optimizer.warmup_fraction = 0.05
    config.train.optimizer.ema_decay = 0.99
    config.train.checkpoint.every_steps = 300
    return config


def _sets(demo: str, weights: dict[str, float]) -> tuple:
    return common.sets(
        *({"path": f"{demo}/data/{name}", "name": name, "weight": weight} for name, weight in weights.items())
    )


def _use_muon(config: ConfigDict, kernels: tuple[str, ...], *, learning_rate: float) -> None:
    config.train.optimizer.muon = kernels
    config.train.optimizer.part_learning_rates = tuple((kernel, learning_rate) for kernel in kernels)
