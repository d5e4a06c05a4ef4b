"""Instruction tuning (Emu-I): LoRA on the decoder's attention, everything else frozen, text loss on the answers.

    python -m emu_jax train --config=configs/instruct_14b.py --workdir=gs://BUCKET/emu_i \
        --config.train.warm_start=MODEL_DIR

MODEL_DIR is a pretrained Emu. LoRA, trainable parameters, data sets and the form of a chat are those of Emu-I. Learning
rate, steps, batch size and fractions of the sets are not published. Learning rate, steps, warm-up and samples per step
are those of Emu2-Chat; the fractions are ours. docs/recipe.md lists all values.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Return the run."""
    config = common.base(
        "emu_14b",
        steps=8000,  # not published; Emu2-Chat's
        # Not published. Emu2-Chat's 768 samples are about 350 rows of chats; this is the next multiple of 128.
        batch_size=384,
        length=1024,  # not published
        max_images=8,  # not published; the frames of one video
    )
    config.samples_per_step = 768  # not published; Emu2-Chat's
    config.stage = common.INSTRUCT
    config.instruct = True
    config.model.lora = ConfigDict({"rank": 16, "alpha": 16.0, "dropout": 0.05})
    config.pretrain.trainable = (r"lora",)
    config.pretrain.new_tokens = 2  # [USER] and [ASSISTANT]; the release does not say whether it trains them
    config.pretrain.frozen_dtype = "bfloat16"
    config.pretrain.regression_weight = 0.0
    config.model.decoder.vocab_size = common.LLAMA_VOCAB + 2  # [USER] and [ASSISTANT]
    config.model.dtype = "bfloat16"  # not published; parameters and moments are float32
    config.model.vision.remat = config.model.decoder.remat = config.model.causal_former.remat = "full"
    config.tokenizer = "data/llama/tokenizer.model"

    # The fractions are not published, and Emu2-Chat has other sets: each set gives as many chats.
    config.data.sets = common.sets(
        {"path": "data/sharegpt"},
        {"path": "data/alpaca"},
        {"path": "data/llava"},
        {"path": "data/videochat"},
        {"path": "data/video_chatgpt"},
    )
    config.data.system_message = "release"
    config.data.frames = 8
    config.data.max_images_per_document = 8
    config.data.workers = 8

    optimizer = config.train.optimizer
    optimizer.learning_rate = 1e-5  # not published; Emu2-Chat's
    optimizer.warmup_steps = 100  # not published; Emu2-Chat's
    optimizer.schedule = "cosine"  # not published
    optimizer.b1, optimizer.b2, optimizer.eps = 0.9, 0.98, 1e-6  # of the pretraining
    optimizer.weight_decay = 0.05  # of the pretraining
    optimizer.clip_norm = 5.0  # not published; Emu2's

    config.train.mesh.data, config.train.mesh.fsdp = -1, 128  # see pretrain_14b.py
    config.chips = common.chips()
    config.train.checkpoint.every_steps = 500
    config.train.checkpoint.keep_every_steps = 2500
    return config
