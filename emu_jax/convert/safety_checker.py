"""Load the safety checker of a diffusers folder."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.convert.clip_table import clip_table
from emu_jax.convert.diffusion_folder import EXTRACTOR, SAFETY, open_part, read_part_config
from emu_jax.convert.table import check_tensors, read_params
from emu_jax.diffusion.clip_vision import ClipVision, ClipVisionConfig
from emu_jax.diffusion.safety import Concepts, Preprocessing, SafetyChecker
from emu_jax.errors import UserError
from emu_jax.io.tensors import Tensor

_CONCEPTS = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")


def load_safety_checker(directory: str | os.PathLike[str]) -> SafetyChecker:
    """Read `safety_checker/` (safetensors or bin) and `feature_extractor/` of a diffusers folder.

    Raises:
      UserError: one of them is missing, or its weights do not fit its config.
    """
    directory = Path(directory)
    config = ClipVisionConfig.from_transformers(read_part_config(directory, SAFETY))
    preprocessing = Preprocessing.from_transformers(read_part_config(directory, EXTRACTOR))
    if preprocessing.crop_size != config.image_size:
        raise UserError(
            f"The feature extractor makes images of {preprocessing.crop_size} pixels, but the safety checker expects "
            f"{config.image_size}."
        )
    tensors = _short_names(open_part(directory, SAFETY))
    absent = [name for name in _CONCEPTS if name not in tensors]
    if absent:
        raise UserError(f"The safety checker in {directory} has no {', '.join(absent)}.")
    embeddings, thresholds, special_embeddings, special_thresholds = (
        tensors.pop(name).read_finite().astype(np.float32) for name in _CONCEPTS
    )
    table = clip_table(config)
    check_tensors(table, tensors, source=str(directory / SAFETY))
    return SafetyChecker(
        ClipVision(config),
        jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), read_params(table, tensors)),
        concepts=Concepts(embeddings, thresholds),
        special=Concepts(special_embeddings, special_thresholds),
        preprocessing=preprocessing,
    )


def _short_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix `vision_model.` (once or twice) and the buffer of position numbers."""
    prefix = "vision_model."
    return {
        name.removeprefix(prefix).removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if not name.endswith("position_ids")
    }
