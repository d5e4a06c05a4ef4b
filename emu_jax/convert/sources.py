"""Open the sources of an import: their tensors under the names of the release, whatever their layout."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from emu_jax.checkpoints.model_config import CONFIG
from emu_jax.convert.emu_table import DECODER, PEFT_DECODER
from emu_jax.errors import UserError
from emu_jax.io.tensor_files import open_tensors
from emu_jax.io.tensors import Tensor

MULTIMODAL_ENCODER = "multimodal_encoder"  # the folder of the Emu in the release, next to unet/, vae/ and scheduler/

_EMU_ONLY = ("cformer.", "ln_visual.", "decoder.lm.stu_regress_head.")
_EVA_WITHOUT_PREFIX = re.compile(r"(blocks\.|patch_embed\.|cls_token$|pos_embed$|norm\.|head\.)")
_BUFFER = re.compile(r".*\.(rotary_emb\.inv_freq|relative_position_index)$")  # computed, not learned
_ADAPTER = re.compile(r"\.lora_([AB])\.weight$")  # from `get_peft_model_state_dict`, without the adapter's name
_TEXT_TOWER = re.compile(r"(text\.|logit_scale$)")  # of a complete EVA-CLIP checkpoint


def open_sources(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the tensors of one or more checkpoints by the names of the release.

    Buffers and CLIP's text tower are left out.

    Raises:
      UserError: a file is not a checkpoint, two checkpoints have the same tensor, or no tensor belongs to an Emu.
    """
    tensors: dict[str, Tensor] = {}
    for path in map(emu_folder, paths):
        for tensor in open_tensors(path).values():
            name = release_name(tensor.name)
            if name is None:
                continue
            if name in tensors:
                raise UserError(f"{name} is in both {tensors[name].file} and {tensor.file}. Name one of them.")
            tensors[name] = tensor
    if not tensors:
        raise UserError(f"{', '.join(map(str, paths))} has no tensor of an Emu.")
    return tensors


def emu_folder(path: Path) -> Path:
    """Return the folder of the Emu in a source: `multimodal_encoder` in the release, otherwise the source."""
    inner = path / MULTIMODAL_ENCODER
    return inner if inner.is_dir() else path


def has_emu(path: Path) -> bool:
    """Return True if a diffusers folder also has an Emu: in the release's folder for it, or at its top level."""
    return (path / MULTIMODAL_ENCODER).is_dir() or (path / CONFIG).is_file()


def is_release(tensors: Mapping[str, Tensor]) -> bool:
    """Return True for the tensors of an Emu, False for those of a LLaMA or an EVA-CLIP only."""
    return any(name.startswith(_EMU_ONLY) for name in tensors)


def release_name(name: str) -> str | None:
    """Return the release's name of a tensor in any known layout; None if Emu does not read it.

    release_name("model.norm.weight")                  -> "decoder.lm.model.norm.weight"
    release_name("blocks.3.norm1.bias")                -> "visual.blocks.3.norm1.bias"
    release_name("decoder.lm.base_model.model.lm_head.weight") -> "decoder.lm.lm_head.weight"
    release_name("decoder.lm.base_model.model.model.norm.base_layer.weight") -> "decoder.lm.model.norm.weight"
    release_name("logit_scale")                        -> None
    """
    name = name.removeprefix("module.")
    if _BUFFER.match(name) or _TEXT_TOWER.match(name):
        return None
    if name.startswith(PEFT_DECODER):
        name = _ADAPTER.sub(r".lora_\1.default.weight", name.replace(".base_layer.", "."))
        return DECODER + name.removeprefix(PEFT_DECODER)
    if name.startswith("model.") or name == "lm_head.weight":
        return DECODER + name
    if _EVA_WITHOUT_PREFIX.match(name):
        return "visual." + name
    return name


def lora_rank(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the rank of the adapters; None if there are none."""
    return next((t.shape[0] for name, t in tensors.items() if name.endswith(".lora_A.default.weight")), None)
