"""Find the sizes of an Emu from the config.json or the tensor shapes of its sources."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from emu_jax.checkpoints.model_config import CONFIG
from emu_jax.convert.emu_config import SPECIAL_TOKENS, from_llama_config, is_emu_config, is_release_form
from emu_jax.convert.emu_table import emu_table, is_adapter
from emu_jax.convert.release_files import find_emu_config, read_emu_config
from emu_jax.convert.sources import emu_folder, is_release, lora_rank
from emu_jax.errors import UserError
from emu_jax.io.files import read_json
from emu_jax.io.tensors import Tensor
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import EmuConfig, VisionConfig
from emu_jax.models.presets import emu_14b

PRESET = "emu_14b"
EVA_HEAD_WIDTH = 88  # of EVA-01-CLIP-g; the tensor shapes do not show the number of heads
_EMBEDDING = "decoder.lm.model.embed_tokens.weight"


def describe(
    sources: Sequence[Path], tensors: Mapping[str, Tensor], *, option: str | None = None, image_size: int | None = None
) -> EmuConfig:
    """Return the config of the Emu that the sources make.

    Args:
      sources: the files or folders.
      tensors: their tensors, from `open_sources`.
      option: a config.json or the name of the preset. None: the config.json next to a source, or else the tensor
        shapes and the published sizes.
      image_size: height and width in pixels, if it is to differ from the config's.

    Raises:
      UserError: the sizes are unknown or invalid.
    """
    config = _sizes(list(map(emu_folder, sources)), tensors, option)
    if image_size is not None:
        if image_size < 1 or image_size % config.vision.patch_size:
            raise UserError(
                f"The image size must be a multiple of the patch size {config.vision.patch_size}, not {image_size}."
            )
        config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_size=image_size))
    return with_adapters(config, tensors)


def declared_vocabulary(sources: Sequence[Path], *, option: str | None = None) -> int | None:
    """Return the vocabulary in the config of a complete Emu; None if no config states it."""
    if option is not None:
        file = Path(option) if Path(option).is_file() else None
    else:
        folders = [source if source.is_dir() else source.parent for source in map(emu_folder, sources)]
        file = next((found for found in map(find_emu_config, folders) if found is not None), None)
    values = None if file is None else read_json(file)
    if file is None or not is_emu_config(values) or is_release_form(values):
        return None
    return read_emu_config(file).decoder.vocab_size


def with_adapters(config: EmuConfig, tensors: Mapping[str, Tensor]) -> EmuConfig:
    """Return `config` with the adapters that are among the tensors; their alpha and dropout are those of Emu-I."""
    rank = lora_rank(tensors)
    if rank is None or config.lora is not None:
        return config
    everywhere = dataclasses.replace(config, lora=LoraConfig(rank=rank, targets=("",)))
    adapters = [row for row in emu_table(everywhere) if is_adapter(row)]
    layers = {row.path.rpartition("/")[0] for row in adapters}
    found = {row.path.rpartition("/")[0] for row in adapters if row.names[0] in tensors}
    lora = LoraConfig(rank=rank)
    if found != {path for path in layers if lora.adapts(path)}:
        lora = dataclasses.replace(lora, targets=tuple(f"^{path}$" for path in sorted(found)))
    return dataclasses.replace(config, lora=lora)


def _sizes(sources: Sequence[Path], tensors: Mapping[str, Tensor], option: str | None) -> EmuConfig:
    if option == PRESET:
        return _published(tensors)
    if option is not None:
        if not Path(option).is_file():
            raise UserError(f"--config {option} is neither a config.json nor the preset {PRESET}.")
        return read_emu_config(Path(option), vocab_size=vocabulary_rows(tensors))
    llama = None
    for source in sources:
        folder = source if source.is_dir() else source.parent
        emu = find_emu_config(folder)
        if emu is not None:
            return read_emu_config(emu, vocab_size=vocabulary_rows(tensors))
        path = folder / CONFIG
        values = read_json(path) if path.is_file() else None
        if isinstance(values, dict) and values.get("model_type") == "llama":
            rows = _vocabulary(tensors, values.get("vocab_size", 32000))
            llama = from_llama_config(values, vocab_size=rows + SPECIAL_TOKENS, source=str(path))
    sizes = _published(tensors) if llama is None else dataclasses.replace(emu_14b(), decoder=llama)
    if is_release(tensors):
        return sizes
    return dataclasses.replace(sizes, vision=_vision_sizes(tensors) or sizes.vision)


def _vocabulary(tensors: Mapping[str, Tensor], default: int) -> int:
    return tensors[_EMBEDDING].shape[0] if _EMBEDDING in tensors else default


def vocabulary_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the vocabulary of a complete Emu; None if its tables are those of a LLaMA, or absent."""
    return tensors[_EMBEDDING].shape[0] if is_release(tensors) and _EMBEDDING in tensors else None


def _published(tensors: Mapping[str, Tensor]) -> EmuConfig:
    """Return the published sizes, if the decoder has their width or is not among the tensors."""
    added = 0 if is_release(tensors) else SPECIAL_TOKENS
    published = emu_14b(vocab_size=_vocabulary(tensors, 32000 if added else 32004) + added)
    width = tensors[_EMBEDDING].shape[-1] if _EMBEDDING in tensors else published.decoder.width
    if width != published.decoder.width:
        raise UserError(
            f"The decoder has width {width}, not the published {published.decoder.width}, and there is no {CONFIG} "
            "next to the checkpoint. Name one with --config."
        )
    return published


def _vision_sizes(tensors: Mapping[str, Tensor]) -> VisionConfig | None:
    """Return the sizes of EVA-CLIP by its tensor shapes; None if there is no vision encoder."""
    try:
        patches = tensors["visual.patch_embed.proj.weight"].shape
        tokens, mlp = tensors["visual.pos_embed"].shape[1], tensors["visual.blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError:
        return None
    layers = sum(name.endswith(".attn.qkv.weight") for name in tensors)
    width, patch = patches[0], patches[-1]
    if width % EVA_HEAD_WIDTH:
        raise UserError(
            f"The vision encoder has width {width}, which is not a multiple of the head width {EVA_HEAD_WIDTH} of "
            "EVA-01-CLIP-g. Name a config.json with --config."
        )
    side = round((tokens - 1) ** 0.5)
    return VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        num_layers=layers,
        num_heads=width // EVA_HEAD_WIDTH,
        mlp_dim=mlp,
    )
