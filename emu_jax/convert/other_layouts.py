"""Recognize checkpoints in layouts that another program converts, and name that program."""

import re
from collections.abc import Iterable
from pathlib import Path

from emu_jax.errors import UserError

_CONSOLIDATED = re.compile(r"consolidated\.\d+\.(pth|pt|safetensors)|consolidated\.safetensors")
_LLAMA = (
    "{path} is a LLaMA in Meta's layout. Convert it with transformers: "
    "python -m transformers.models.llama.convert_llama_weights_to_hf --input_dir DIR --model_size 13B --output_dir OUT"
)
_STABLE_DIFFUSION = (
    "{path} is a Stable Diffusion checkpoint in one file. Convert it with diffusers: "
    "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and import FOLDER"
)
_DIFFUSERS_PART = "{path} is one part of a diffusers model. Name the folder that has unet/, vae/ and scheduler/"
_BY_NAME = (
    (
        re.compile(r"(model(_ema)?\.)?(diffusion_model|first_stage_model|cond_stage_model)\."),
        _STABLE_DIFFUSION,
    ),
    (re.compile(r"(input_blocks|output_blocks|middle_block)\."), _STABLE_DIFFUSION),
    (re.compile(r"tok_embeddings\.weight|layers\.\d+\.attention\.w[qkvo]\.weight"), _LLAMA),
    (re.compile(r"(down_blocks|mid_block|encoder\.down_blocks)\."), _DIFFUSERS_PART),
)


def check_layout(path: Path) -> None:
    """Raise UserError if the file names are those of Meta's LLaMA, whose shards cannot be read one by one."""
    names = [file.name for file in path.iterdir()] if path.is_dir() else [path.name]
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".pt"))]
    if weights and all(map(_CONSOLIDATED.fullmatch, weights)):
        raise UserError(f"{_LLAMA.format(path=path)}.")


def check_names(names: Iterable[str], path: Path) -> None:
    """Raise UserError if the names of the tensors are those of another program's layout."""
    for name in names:
        message = next((message for pattern, message in _BY_NAME if pattern.match(name)), None)
        if message is not None:
            raise UserError(f"{message.format(path=path)}.")
