"""Pretraining of Emu (Sun et al., ICLR 2024): EVA-CLIP g, a new causal former and LLaMA-13B, both losses.

    python -m emu_jax train --config=configs/pretrain_14b.py --workdir=gs://BUCKET/emu_14b \
        --config.train.warm_start=MODEL_DIR
    python -m emu_jax train --config=configs/pretrain_14b.py:512 --workdir=...

`512` is the variant with sections of 512 tokens of an MMC4 page, instead of 1024. MODEL_DIR is written by
`import-torch` from the published EVA-CLIP and LLaMA weights. The mesh shards the parameters over 128 chips, and is
data-parallel over groups of 128 chips and over slices.

Values without a comment are the paper's. Comments mark values that the paper does not give, or that only one source
gives, and deviations with their reason. docs/recipe.md lists all of them.
"""

from ml_collections import ConfigDict

from configs import common

# Mean tokens (with those of images) and images of a document, by set. Estimates: `inspect-data` measures them on your
# sets, and prints the rows per step that they require.
SIZES = {
    "laion2b": (53, 1.0),
    "laion_coco": (53, 1.0),
    "mmc4": (453, 1.8),
    "webvid": (294, 8.0),
    "yt_storyboard": (872, 13.6),
}


def get_config(page_length: str = "1024") -> ConfigDict:
    """Return the run, with sections of `page_length` tokens of an MMC4 page."""
    config = common.base(
        "emu_14b",
        # Inferred: 82M samples in 10k steps are 8,192 per step. With documents of SIZES these are about 1,420 rows;
        # this is the next multiple of 512.
        steps=10_000,
        batch_size=1536,
        length=1024,
        max_images=14,  # not published; rows are filled best (experiments/records/packing.md)
    )
    config.samples_per_step = 8192
    config.model.decoder.vocab_size = common.LLAMA_VOCAB
    config.model.dtype = "bfloat16"  # not published; parameters and moments are float32
    config.model.vision.remat = config.model.decoder.remat = config.model.causal_former.remat = "full"
    config.tokenizer = "data/llama/tokenizer.model"

    # The weight of each set is its batch size in the paper, where each step of a GPU appears to draw one set (inferred)
    # Here each row packs documents of all sets: as many of each, and fuller rows. With
    # --config.data.mixing=homogeneous, each step draws one set.
    config.data.sets = common.sets(
        {"path": "data/laion2b", "weight": 128.0},
        {"path": "data/laion_coco", "weight": 128.0},
        {
            "path": "data/mmc4",  # prepare-data drops images with a CLIP similarity below 0.32
            "weight": 64.0,
            "max_images": 5,  # the first five of a random section
            "max_length": int(page_length),
            "page_image_first": 0.5,  # not published; Emu2's order probability
        },
        {"path": "data/webvid", "weight": 16.0, "max_images": 8},  # from prepare-data --frames=32
        {"path": "data/yt_storyboard", "weight": 16.0},  # number of frames not published; as many as fit in a row
    )
    config.data.image_first = 0.5  # order at random; the probability is not published, 0.5 is Emu2's
    config.data.frames = 8  # per WebVid video
    config.data.frame_choice = "random"
    config.data.workers = 8

    # Cross-entropy: mean over the labels of the global batch. Regression: mean squared error over its image positions
    # and embedding dimensions. Neither the reduction nor the weight is published.
    config.pretrain.regression_weight = 1.0  # third-party trainers use 1

    optimizer = config.train.optimizer
    optimizer.part_learning_rates = ((r"^(vision_encoder|visual_norm)/", 4e-5), (r"^causal_former/", 1e-4))
    optimizer.learning_rate = 3e-5  # LLaMA; that of lm_head and regression_head is not published
    optimizer.schedule = "cosine"
    optimizer.warmup_fraction = 0.2  # one source
    optimizer.final_fraction = 0.0  # not published
    optimizer.b1, optimizer.b2, optimizer.eps = 0.9, 0.98, 1e-6
    optimizer.weight_decay = 0.05
    # Not published: no weight decay on norms, biases, embeddings, learned positions and queries (`optimizer.no_decay`).
    optimizer.clip_norm = 5.0  # not published; Emu2's

    # Not 256: it divides no dimension of the vision encoder's attention (width 1408, 16 heads of 88), which would be
    # replicated on every chip and take 3.6 GiB with its moments.
    config.train.mesh.data, config.train.mesh.fsdp = -1, 128
    config.train.accumulation = 3  # 512 rows at a time, so that the step fits on the chips of experiments/records
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
