"""Emu-I: instruction tuning with LoRA on the decoder's attention, the rest frozen, the loss on the answers.

    python -m emu_jax train --config=configs/instruct_14b.py --workdir=gs://BUCKET/emu_i \
        --config.train.warm_start=MODEL_DIR

MODEL_DIR is a pretrained Emu. Rank, alpha, dropout and what trains are the release's; learning rate, steps, batch and
the shares of the sets are not published: those here are Emu2-Chat's.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The run."""
    config = common.paper(vocab_size=common.LLAMA_VOCAB + 2)  # [USER] and [ASSISTANT]
    config.model.lora = ConfigDict({"rank": 16, "alpha": 16.0, "dropout": 0.05})
    config.stage = common.INSTRUCT
    config.instruct = True
    config.pretrain.trainable = (r"lora",)
    config.pretrain.regression_coefficient = 0.0
    config.data.sets = common.sets(
        {"path": "data/sharegpt"},
        {"path": "data/alpaca"},
        {"path": "data/llava"},
        {"path": "data/videochat"},
        {"path": "data/video_chatgpt"},
    )
    config.data.batch.batch_size = 64
    config.data.system_message = "release"
    config.train.steps = 8000
    config.train.optimizer.part_learning_rates = ()
    config.train.optimizer.learning_rate = 1e-5
    config.train.optimizer.warmup_steps = 100.0
    return config
