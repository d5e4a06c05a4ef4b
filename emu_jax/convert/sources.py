"""Open the sources of an import: their tensors under the names of the release, whatever their layout."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from emu_jax.checkpoints.model_config import CONFIG
from emu_jax.checkpoints.model_directory import TOKENIZER
from emu_jax.convert.emu_config import LLAMA_CONFIG
from emu_jax.convert.emu_table import DECODER, PEFT_DECODER
from emu_jax.convert.other_layouts import check_layout, check_names
from emu_jax.errors import UserError
from emu_jax.io.tensor_files import open_checkpoint
from emu_jax.io.tensors import Tensor
from emu_jax.io.wrapper_names import without_wrappers

MULTIMODAL_ENCODER = "multimodal_encoder"  # the folder of the Emu in the release, next to unet/, vae/ and scheduler/

_EMU_ONLY = ("cformer.", "ln_visual.", "decoder.lm.stu_regress_head.")
_EVA_WITHOUT_PREFIX = re.compile(r"(blocks\.|patch_embed\.|cls_token$|pos_embed$|norm\.|head\.)")
_BUFFER = re.compile(r".*\.(rotary_emb\.inv_freq|relative_position_index)$")  # computed, not learned
_ADAPTER = re.compile(r"\.lora_([AB])\.weight$")  # from `get_peft_model_state_dict`, without the adapter's name
# Names that follow the `model.` of a wrapper. The names of a LLaMA also begin with `model.`.
_OWN = re.compile(
    r"(visual|cformer|ln_visual|decoder\.lm)\.|model\.(layers|embed_tokens|norm)\.|lm_head\.|blocks\.|patch_embed\."
)
_TEXT_TOWER = re.compile(r"(text\.|logit_scale$)")  # of a complete EVA-CLIP checkpoint


@dataclasses.dataclass(frozen=True)
class Sources:
    """The tensors of all sources by the names of the release, and one line for each choice that was made."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def open_sources(paths: Sequence[Path]) -> Sources:
    """Return the tensors of one or more checkpoints by the names of the release.

    Buffers and CLIP's text tower are left out.

    Raises:
      UserError: a file is not a checkpoint, two checkpoints have the same tensor, or no tensor belongs to an Emu.
    """
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    for path in map(emu_folder, paths):
        check_layout(path)
        opened = open_checkpoint(path)
        unwrapped, removed = without_wrappers(opened.tensors, _OWN)
        check_names(unwrapped, path)
        notes += [*opened.notes, *removed]
        for tensor in unwrapped.values():
            name = release_name(tensor.name)
            if name is None:
                continue
            if name in tensors:
                raise UserError(f"{name} is in both {tensors[name].file} and {tensor.file}. Name one of them.")
            tensors[name] = tensor
    if not tensors:
        raise UserError(f"{', '.join(map(str, paths))} has no tensor of an Emu.")
    return Sources(tensors, tuple(notes))


def emu_folder(path: Path) -> Path:
    """Return the folder of the Emu in a source: `multimodal_encoder` in the release, otherwise the source."""
    inner = path / MULTIMODAL_ENCODER
    return inner if inner.is_dir() else path


def find_tokenizer(sources: Sequence[Path]) -> Path | None:
    """Return the tokenizer.model in or next to a source, or in its `llama_config/`, as in the code of the release."""
    folders = [folder if folder.is_dir() else folder.parent for folder in map(emu_folder, sources)]
    candidates = [folder / name for folder in folders for name in (TOKENIZER, f"{LLAMA_CONFIG}/{TOKENIZER}")]
    return next((path for path in candidates if path.is_file()), None)


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
