"""Render docs/recipe.md, which compares the configs with the papers: each value is read from the config.

python -m tests.configs.recipe
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from emu_jax.config import from_config_dict
from emu_jax.data.sources import ReadOptions
from emu_jax.training.optimizer import make_schedule, peak_learning_rate
from emu_jax.training.runs.emu import EmuRunConfig, read_emu_config
from emu_jax.training.runs.visual_decoder import VisualDecoderRunConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe.md"
UNKNOWN = "not published"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table; without `reason`, our value is the paper's."""

    name: str
    paper: str
    ours: Any
    reason: str = ""


def render() -> str:
    """Return the page."""
    return f"""# Recipe

Values of the configs next to those of the papers (Emu: Sun et al., ICLR 2024; Emu2: Sun et al., CVPR 2024).
"{UNKNOWN}" means that neither the paper nor the released code gives the value; "inferred" means that it follows from
values that they give. `python -m tests.configs.recipe` writes this page, and reads the values of the configs from them.

## Pretraining: configs/pretrain_14b.py

{_table(pretraining())}

`inspect-data --config=configs/pretrain_14b.py` prints the documents, tokens and images of a step for your prepared sets
next to the recipe's, the rows that reach the recipe's, and the image slots that fill rows best.

## Visual decoder: configs/visual_decoder.py

{_table(visual_decoder())}

## Instruction tuning: configs/instruct_14b.py

{_table(instruction_tuning())}
"""


def pretraining() -> list[Row]:
    """Return the rows about pretraining."""
    module = importlib.import_module("configs.pretrain_14b")
    run = read_emu_config(module.get_config())
    short = read_emu_config(module.get_config("512"))
    sets = {Path(one.path).name: one for one in run.data.sets}
    batch, optimizer = run.data.batch, run.train.optimizer
    tokens, images = expected_sizes(run, module.SIZES)
    rate = {part: peak_learning_rate(optimizer, f"{part}/kernel") for part in ("vision_encoder", "causal_former")}
    frames = run.data.frames
    return [
        Row("steps", "10,000", f"{run.train.steps:,}"),
        Row(
            "samples per step",
            "8,192 (inferred: 82M in 10k steps)",
            f"{run.samples_per_step:,}: {batch.batch_size:,} rows of {batch.length:,} tokens, about "
            f"{batch.batch_size * batch.length / tokens:,.0f} documents without unused tokens",
            "Rows hold several documents. The number is the smallest multiple of 512 rows that reaches the recipe with "
            f"documents of {tokens:.0f} tokens and {images:.1f} images on average (`SIZES` in the config, estimated).",
        ),
        Row(
            "rows at a time",
            "one sequence per sample",
            f"{batch.batch_size // run.train.accumulation} ({run.train.accumulation} microbatches)",
            "Memory of the chips in experiments/records; gradients are those of the complete step.",
        ),
        Row(
            "weights of LAION-2B, LAION-COCO, MMC4, WebVid, YT-Storyboard",
            "128, 128, 64, 16, 16",
            ", ".join(f"{one.weight:g}" for one in run.data.sets),
        ),
        Row(
            "sets of a batch",
            "one for each step of a GPU (inferred)",
            run.data.mixing.value,
            "As many documents of each set, and fuller rows. `data.mixing=homogeneous` draws one set per step.",
        ),
        Row(
            "MMC4: CLIP similarity",
            "at least 0.32",
            f"at least {ReadOptions().min_similarity:g} (`prepare-data --min-similarity`)",
        ),
        Row("MMC4: section", "random, 1,024 tokens", f"random, {sets['mmc4'].max_length:,} tokens"),
        Row("MMC4: images of a section", "the first 5", f"the first {sets['mmc4'].max_images}"),
        Row(
            "MMC4: variant",
            "512 tokens",
            f"{_set(short, 'mmc4').max_length} tokens (`configs/pretrain_14b.py:512`)",
        ),
        Row(
            "MMC4: image before its sentence",
            UNKNOWN,
            f"probability {sets['mmc4'].page_image_first:g}",
            "Emu2's order probability.",
        ),
        Row(
            "WebVid: frames",
            "8, at random",
            f"{frames}, {run.data.frame_choice.value}, of 32 that `prepare-data` stores",
        ),
        Row(
            "WebVid: text",
            "cleaned by rules (not published)",
            "cleaned by `emu_jax/data/sources/webvid_text.py`",
            "Dates, locations of a recording, formats and terms of stock footage are removed.",
        ),
        Row(
            "YT-Storyboard: frames of a sequence",
            UNKNOWN,
            f"at most {sets['yt_storyboard'].max_images or batch.max_images}",
            "As many as the image slots of a row.",
        ),
        Row(
            "image or video before its text",
            "at random",
            f"probability {run.data.image_first:g}",
            f"The probability is {UNKNOWN}; Emu2's.",
        ),
        Row(
            "image slots of a row",
            UNKNOWN,
            batch.max_images,
            "97% of the tokens and 85% of the slots are used with `SIZES` (experiments/records/packing.md).",
        ),
        Row(
            "text loss",
            "cross-entropy; no loss on `[IMG]`, `<image>`, `[/IMG]`, padding",
            f"the same, mean over all labels; `[IMG]` has a loss: {'yes' if run.data.predict_boi else 'no'}",
            f"The reduction is {UNKNOWN}.",
        ),
        Row(
            "regression loss",
            "l2, 33 pairs per image, target detached",
            f"mean squared error of {run.data.num_image_tokens + 1} pairs per image ({run.data.regress.value} images), "
            f"mean over pairs and dimensions, weight {run.pretrain.regression_weight:g}",
            f"Reduction and weight are {UNKNOWN}; third-party trainers use 1.",
        ),
        Row(
            "trained parameters",
            "all",
            "all" if run.pretrain.trainable == (".*",) else _patterns(run.pretrain.trainable),
        ),
        Row("optimizer", "AdamW", "AdamW" if not optimizer.muon else "Muon and AdamW"),
        Row("beta 1, beta 2, epsilon", "0.9, 0.98, 1e-6", f"{optimizer.b1}, {optimizer.b2}, {optimizer.eps:g}"),
        Row("weight decay", "0.05", f"{optimizer.weight_decay:g}"),
        Row(
            "parameters without weight decay",
            UNKNOWN,
            _patterns(optimizer.no_decay),
            "Norms, biases, embeddings, learned positions and queries, as is common.",
        ),
        Row("peak learning rate, vision encoder", "4e-5", f"{rate['vision_encoder']:g}"),
        Row("peak learning rate, causal former", "1e-4", f"{rate['causal_former']:g}"),
        Row(
            "peak learning rate, LLaMA",
            "3e-5",
            f"{optimizer.learning_rate:g}",
            "Also of `lm_head` and `regression_head`, for which it is not published.",
        ),
        Row(
            "schedule",
            "cosine, 20% warm-up (one source)",
            f"{optimizer.schedule.value}, {optimizer.warmup_fraction:.0%} warm-up, to {optimizer.final_fraction:g}",
            f"The final rate is {UNKNOWN}.",
        ),
        Row("gradient clipping", UNKNOWN, f"norm {optimizer.clip_norm:g}", "Emu2's."),
        Row("compute", UNKNOWN, run.model.dtype, "Parameters and moments are float32."),
        Row("hardware", "128 A100, two days", "any mesh", "`train.mesh`; docs/how-to/performance.md has estimates."),
    ]


def visual_decoder() -> list[Row]:
    """Return the rows about the visual decoder."""
    config = importlib.import_module("configs.visual_decoder").get_config()
    run = from_config_dict(VisualDecoderRunConfig, config)
    optimizer, computed = run.train.optimizer, run.computed
    assert computed is not None
    schedule = make_schedule(optimizer, steps=run.train.steps)
    rates = {step: optimizer.learning_rate * float(schedule(jnp.int32(step))) for step in (4999, 10_000, 14_000)}
    return [
        Row("initial U-Net", "Stable Diffusion v1.5", Path(run.decoder).name),
        Row("trained", "the U-Net; key and value projections of the condition are new", "the same"),
        Row("condition", "Emu's predictions from the caption", f"{computed.condition.value} (`:encoded` is Emu2's)"),
        Row("LAION-COCO : LAION-Aesthetics", "7 : 2", " : ".join(f"{one.weight:g}" for one in computed.sets)),
        Row("captions", "at most 150 characters", f"at most {computed.max_caption_length} characters"),
        Row(
            "prompt",
            UNKNOWN,
            f"at most {computed.prompt_length} tokens",
            "Of fixed shape; 150 characters are about 40 tokens. Longer prompts are left out.",
        ),
        Row(
            "images",
            "512 pixels",
            "512 pixels (`prepare-data --image-size=512 --crop`); smaller ones are refused: "
            f"{'no' if computed.allow_upscale else 'yes'}",
            "The shorter side is resized and the center cropped, as Stable Diffusion trains.",
        ),
        Row("steps", "15,000", f"{run.train.steps:,}"),
        Row("images per step", "50 x 4 x 8 = 1,600", f"{run.batch_size:,}"),
        Row(
            "learning rate",
            "5k steps of warm-up to 1e-4, 5e-5 from 10k, 1e-5 from 14k",
            f"{optimizer.warmup_steps:,} steps of warm-up to {rates[4999]:.0e}, {rates[10_000]:.0e} from 10k, "
            f"{rates[14_000]:.0e} from 14k",
        ),
        Row("beta 1, beta 2", "0.9, 0.999", f"{optimizer.b1}, {optimizer.b2}"),
        Row("epsilon", UNKNOWN, f"{optimizer.eps:g}", "Of the pretraining."),
        Row("weight decay", "1e-2", f"{optimizer.weight_decay:g}"),
        Row("gradient clipping", UNKNOWN, f"norm {optimizer.clip_norm:g}", "Common for this U-Net."),
        Row("dropped conditions", "10%", f"{run.training.condition_dropout:.0%}"),
        Row("loss", "noise prediction", "as the scheduler of the decoder says: noise for v1.5"),
        Row(
            "weighting by signal to noise, moving average of the weights",
            "not mentioned",
            f"{run.training.min_snr_gamma or 'none'}, {optimizer.ema_decay or 'none'}",
        ),
        Row("compute", UNKNOWN, run.training.dtype, "Parameters and moments are float32."),
    ]


def instruction_tuning() -> list[Row]:
    """Return the rows about instruction tuning."""
    run = read_emu_config(importlib.import_module("configs.instruct_14b").get_config())
    batch, optimizer, lora = run.data.batch, run.train.optimizer, run.model.lora
    assert lora is not None
    emu2 = "Emu2-Chat's."
    return [
        Row("trained", "LoRA on q, k, v and o of the decoder", f"LoRA ({_patterns(run.pretrain.trainable)})"),
        Row("rank, alpha, dropout", "16, 16, 0.05", f"{lora.rank}, {lora.alpha:g}, {lora.dropout:g}"),
        Row(
            "data sets",
            "ShareGPT, Alpaca, LLaVA, VideoChat, Video-ChatGPT",
            ", ".join(Path(one.path).name for one in run.data.sets),
        ),
        Row(
            "fractions of the sets",
            UNKNOWN,
            " : ".join(f"{one.weight:g}" for one in run.data.sets),
            "As many chats of each set. Emu2-Chat has other sets, so its fractions cannot be used.",
        ),
        Row("chat", "`<system> [USER]: ... [ASSISTANT]: ...`", "the same"),
        Row("system messages", "of the release", run.data.system_message.value),
        Row("loss", "on the answers", f"on the answers; regression weight {run.pretrain.regression_weight:g}"),
        Row("frames of a video", "8", run.data.frames),
        Row("steps", UNKNOWN, f"{run.train.steps:,}", emu2),
        Row(
            "samples per step",
            UNKNOWN,
            f"{run.samples_per_step}: {batch.batch_size} rows of {batch.length:,} tokens",
            f"{emu2} Rows hold several chats; `inspect-data` prints how many.",
        ),
        Row("learning rate", UNKNOWN, f"{optimizer.learning_rate:g}", emu2),
        Row("warm-up", UNKNOWN, f"{optimizer.warmup_steps} steps", emu2),
        Row("schedule", UNKNOWN, optimizer.schedule.value, "Of the pretraining."),
        Row(
            "beta 1, beta 2, epsilon, weight decay",
            UNKNOWN,
            f"{optimizer.b1}, {optimizer.b2}, {optimizer.eps:g}, {optimizer.weight_decay:g}",
            "Of the pretraining.",
        ),
        Row("gradient clipping", UNKNOWN, f"norm {optimizer.clip_norm:g}", "Emu2's."),
        Row("compute", UNKNOWN, run.model.dtype, "Parameters and moments are float32."),
    ]


def expected_sizes(run: EmuRunConfig, sizes: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Return mean tokens and images of a document of the mixture."""
    total = sum(one.weight for one in run.data.sets)
    weighted = [(one.weight / total, sizes[Path(one.path).name]) for one in run.data.sets]
    return sum(w * tokens for w, (tokens, _) in weighted), sum(w * images for w, (_, images) in weighted)


def _set(run: EmuRunConfig, name: str) -> Any:
    return next(one for one in run.data.sets if Path(one.path).name == name)


def _patterns(patterns: tuple[str, ...]) -> str:
    return ", ".join("`" + pattern.replace("|", "\\|") + "`" for pattern in patterns)


def _table(rows: list[Row]) -> str:
    head = "| | paper | ours | reason |\n|---|---|---|---|\n"
    return head + "\n".join(f"| {row.name} | {row.paper} | {row.ours} | {row.reason} |" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
