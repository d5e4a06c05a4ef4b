"""Pretraining of Emu (Sun et al., ICLR 2024): EVA-CLIP g, a new causal former and LLaMA-13B, both losses.

    python -m emu_jax train --config=configs/pretrain_14b.py --workdir=gs://BUCKET/emu_14b \
        --config.train.warm_start=MODEL_DIR

MODEL_DIR is written by `import-torch` from the published EVA-CLIP and LLaMA weights. The mesh shards the parameters
over 128 chips, and is data-parallel over groups of 128 chips and over slices.

Values without a comment are the paper's. Comments mark values that the paper does not give, or that only one source
gives.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Return the run."""
    config = common.base(
        "emu_14b",
        steps=10_000,
        batch_size=512,  # inferred: 82M samples in 10k steps are 8,192 per step, or 512 rows of 16 image-text pairs
        length=1024,
        max_images=16,  # not published; the pairs in a row of 1024 tokens
    )
    config.model.decoder.vocab_size = common.LLAMA_VOCAB
    config.model.dtype = "bfloat16"  # not published; parameters and moments are float32
    config.model.vision.remat = config.model.decoder.remat = config.model.causal_former.remat = "full"
    config.tokenizer = "data/llama/tokenizer.model"

    # The weight of each set is its batch size in the paper.
    config.data.sets = common.sets(
        {"path": "data/laion2b", "weight": 128.0},
        {"path": "data/laion_coco", "weight": 128.0},
        {"path": "data/mmc4", "weight": 64.0, "page_image_first": 0.5},  # not published; Emu2's order probability
        {"path": "data/webvid", "weight": 16.0},
        {"path": "data/yt_storyboard", "weight": 16.0},
    )
    config.data.image_first = 0.5  # order at random; the probability is not published, 0.5 is Emu2's
    config.data.frames = 8  # per WebVid video
    config.data.max_images_per_document = 8  # the frames of a video; the paper uses the first 5 images of MMC4 pages
    config.data.workers = 8

    config.pretrain.regression_weight = 1.0  # not published; third-party trainers use 1

    optimizer = config.train.optimizer
    optimizer.part_learning_rates = ((r"^(vision_encoder|visual_norm)/", 4e-5), (r"^causal_former/", 1e-4))
    optimizer.learning_rate = 3e-5  # LLaMA; that of lm_head and regression_head is not published
    optimizer.schedule = "cosine"
    optimizer.warmup_fraction = 0.2  # one source
    optimizer.final_fraction = 0.0  # not published
    optimizer.b1, optimizer.b2, optimizer.eps = 0.9, 0.98, 1e-6
    optimizer.weight_decay = 0.05
    optimizer.clip_norm = 5.0  # not published; Emu2's

    # Not 256: it divides no dimension of the vision encoder's attention (width 1408, 16 heads of 88), which would be
    # replicated on every chip and take 3.6 GiB with its moments.
    config.train.mesh.data, config.train.mesh.fsdp = -1, 128
    config.chips = common.chips()
    # Written by `prepare-data` from files that are not in `config.data.sets`.
    config.evaluation.sets = common.held_out(
        {"path": "data/held_out/laion_coco", "name": "laion_coco"},
        {"path": "data/held_out/mmc4", "name": "mmc4"},
        {"path": "data/held_out/webvid", "name": "webvid"},
    )
    config.train.evaluate_every = 500
    config.train.checkpoint.every_steps = 500
    config.train.checkpoint.keep_every_steps = 2500
    return config
