"""PyTorch checkpoints to a model directory, streaming: no more than a layer or two is in memory at a time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from etils import epath

from emu_jax.checkpoints.model_directory import (
    PARAMS,
    TOKENIZER,
    VISUAL_DECODER,
    finish_model,
    new_model,
    read_json,
    save_unused,
)
from emu_jax.convert import diffusion_folder as diffusers_folder
from emu_jax.convert import diffusion_table as torch_layout
from emu_jax.convert.emu_config import CONFIG, SPECIAL_TOKENS, from_llama_config, read_config
from emu_jax.convert.emu_table import lora_rank
from emu_jax.convert.files import Planned, Tensor, write_safetensors
from emu_jax.convert.match import Plan, is_release, open_sources, plan_import
from emu_jax.convert.streaming import write_params
from emu_jax.data.tokenizer import fitting_tokenizer
from emu_jax.diffusion.config import UNetConfig, VAEConfig
from emu_jax.diffusion.decoder import fresh_projections
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.errors import UserError
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import EmuConfig, VisionConfig
from emu_jax.models.presets import emu_14b

EVA_HEAD_WIDTH = 88  # of EVA-01-CLIP-g; a checkpoint does not tell its number of heads
_TABLE = "decoder.lm.model.embed_tokens.weight"

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import did: parameters by path, what was initialised anew, what was carried along, what was adapted."""

    parameters: int
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PreparedImport:
    """An import whose names, shapes and sizes have been checked; `write` does it."""

    config: EmuConfig
    plan: Plan
    tokenizer: Path | None

    @property
    def nbytes(self) -> int:
        """What `write` will write of parameters."""
        return sum(parameter.nbytes for parameter in self.plan.parameters.values())

    def write(self, destination: Path, *, progress: Progress | None = None) -> Imported:
        """Writes the model directory; complete or not there at all.

        Args:
          destination: the directory; it may hold a visual_decoder, but no model.
          progress: called with the number of bytes just written.

        Raises:
          UserError: a tensor holds NaN, or the destination cannot be written or holds a model.
        """
        with new_model(destination) as temporary:
            try:
                write_params(epath.Path(temporary) / PARAMS, self.plan.parameters, progress=progress)
            except UserError:
                raise
            except (OSError, ValueError) as error:
                raise UserError(f"{destination} could not be written: {str(error).splitlines()[0]}") from error
            save_unused(temporary, self.plan.unused)
            finish_model(temporary, self.config, tokenizer=self.tokenizer)
        plan = self.plan
        return Imported(len(plan.parameters), plan.fresh, tuple(plan.unused), plan.notes)


def prepare_import(
    sources: Sequence[Path],
    *,
    config: str | None = None,
    tokenizer: Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> PreparedImport:
    """Finds out what the sources are and checks all of it that headers tell.

    Args:
      sources: files or folders: one Emu, or a LLaMA and/or an EVA-CLIP to begin a new Emu from.
      config: a config.json (ours or the release's) or a preset's name; default: beside the sources, or by their shapes.
      tokenizer: a SentencePiece model; default: tokenizer.model in one of the source folders.
      image_size: pixels; learned positions are interpolated to it. Default: as in the config.
      seed: of what is initialised anew.

    Raises:
      UserError: a source is no checkpoint, does not fit, or its sizes cannot be known.
    """
    sources = [_model_part(path) for path in sources]
    tensors = open_sources(sources)
    sizes = _sizes(sources, tensors, config)
    if image_size is not None:
        if image_size < 1 or image_size % sizes.vision.patch_size:
            raise UserError(f"Images of {image_size} pixels cannot be cut into patches of {sizes.vision.patch_size}.")
        sizes = dataclasses.replace(sizes, vision=dataclasses.replace(sizes.vision, image_size=image_size))
    rank = lora_rank((name, tensor.shape) for name, tensor in tensors.items())
    if rank is not None and sizes.lora is None:
        sizes = dataclasses.replace(sizes, lora=LoraConfig(rank=rank))
    plan = plan_import(tensors, sizes, resize=image_size is not None, seed=seed)
    compute, kept = _dtypes(plan)
    sizes = dataclasses.replace(sizes, dtype=compute, param_dtype=kept)
    found = next((path / TOKENIZER for path in sources if (path / TOKENIZER).is_file()), None)
    tokenizer = tokenizer or found
    if tokenizer is not None:
        fitting_tokenizer(tokenizer, vocab_size=sizes.decoder.vocab_size)  # its error, before any work
    return PreparedImport(sizes, plan, tokenizer)


def is_diffusers_folder(path: Path) -> bool:
    """Whether a U-Net or an autoencoder lies here in diffusers' layout, so that the rest of a decoder should too."""
    return any((path / part / "config.json").is_file() for part in ("unet", "vae"))


def holds_emu(path: Path) -> bool:
    """Whether an Emu lies beside the parts of a diffusers folder: in the release's place for it, or in ours."""
    return (path / "multimodal_encoder").is_dir() or (path / CONFIG).is_file()


@dataclasses.dataclass(frozen=True)
class ImportedDecoder:
    """The parts of a diffusers folder that were taken, and the torch names of what is new in the U-Net."""

    parts: tuple[str, ...]
    fresh: tuple[str, ...]


def import_visual_decoder(
    source: Path, destination: Path, *, width: int | None = None, seed: int = 0, progress: Progress | None = None
) -> ImportedDecoder:
    """Copies a diffusers folder to DESTINATION/visual_decoder as safetensors, checked against the table.

    Args:
      source: the folder; its safety checker and feature extractor come along where they are.
      destination: a model directory, or what will be one.
      width: of the embeddings that the U-Net is to take; default: that of the Emu in DESTINATION, or else the
        folder's. Where the folder has another (SD v1.5: 768), the keys' and values' projections are new.
      seed: of what is new.

    Raises:
      UserError: a part or a tensor is missing, of another shape, or holds NaN, or does what is not built here; or
        there is a visual decoder already.
    """
    target = destination / VISUAL_DECODER
    if target.exists():
        raise UserError(f"{target} is there already; name another directory, or remove that one.")
    if width is None and (destination / CONFIG).is_file():
        width = read_config(destination / CONFIG).decoder.width
    unet = UNetConfig.from_diffusers(diffusers_folder.read_config(source, diffusers_folder.UNET))
    vae = VAEConfig.from_diffusers(diffusers_folder.read_config(source, diffusers_folder.VAE))
    configs = {part: diffusers_folder.read_config(source, part) for part in diffusers_folder.NEEDED}
    NoiseSchedule.from_diffusers(configs[diffusers_folder.SCHEDULER])  # its error, before any work
    planned = {
        diffusers_folder.UNET: _checked_part(source, diffusers_folder.UNET, torch_layout.unet_table(unet)),
        diffusers_folder.VAE: _checked_part(source, diffusers_folder.VAE, torch_layout.vae_table(vae)),
    }
    fresh: tuple[str, ...] = ()
    if width is not None and width != unet.cross_attention_dim:
        planned[diffusers_folder.UNET], fresh = _with_width(planned[diffusers_folder.UNET], unet, width, seed)
        configs[diffusers_folder.UNET] = configs[diffusers_folder.UNET] | {"cross_attention_dim": width}
    with diffusers_folder.replacing_folder(target) as temporary:
        for part, config in configs.items():
            diffusers_folder.write_part(temporary, part, config)
        for part, tensors in planned.items():
            for tensor in write_safetensors(temporary / part, tensors, stem=diffusers_folder.WEIGHTS):
                if progress is not None:
                    progress(tensor.nbytes)
        screening = diffusers_folder.copy_screening(source, temporary)
    return ImportedDecoder((*configs, *screening), fresh)


def _with_width(
    tensors: list[Planned], unet: UNetConfig, width: int, seed: int
) -> tuple[list[Planned], tuple[str, ...]]:
    """The U-Net's tensors with new projections of embeddings `width` wide, and which these are."""
    fresh = fresh_projections(dataclasses.replace(unet, cross_attention_dim=width), seed=seed)
    changed = []
    for tensor in tensors:
        if tensor.name in fresh:
            make = lambda name=tensor.name, dtype=tensor.dtype: fresh[name]().astype(dtype)
            tensor = Planned(tensor.name, (tensor.shape[0], width), tensor.dtype, make)
        changed.append(tensor)
    return changed, tuple(fresh)


def _checked_part(source: Path, part: str, table: torch_layout.Table) -> list[Planned]:
    arrays = diffusers_folder.read_weights(source, part)
    wanted = {row.torch for row in table}
    missing, unknown = sorted(wanted - set(arrays)), sorted(set(arrays) - wanted)
    if missing or unknown:
        raise UserError(
            f"{source / part} does not fit its config: {len(missing)} tensors missing ({', '.join(missing[:5])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:5])}). Nothing was written."
        )
    planned = []
    for row in table:
        array = arrays[row.torch]
        if array.shape != row.shape:
            raise UserError(f"{row.torch} in {source / part} is {list(array.shape)}, wanted {list(row.shape)}.")
        if not np.isfinite(array).all():
            raise UserError(f"{row.torch} in {source / part} holds NaN or infinite values; the file is damaged.")
        make = functools.partial(arrays.__getitem__, row.torch)
        planned.append(Planned(row.torch, row.shape, array.dtype, make))
    return planned


def _model_part(path: Path) -> Path:
    """In the release's own folder the Emu stands in `multimodal_encoder`, beside the visual decoder's parts."""
    inner = path / "multimodal_encoder"
    return inner if inner.is_dir() else path


def _sizes(sources: Sequence[Path], tensors: Mapping[str, Tensor], option: str | None) -> EmuConfig:
    if option is not None:
        path = Path(option)
        if option == "emu_14b":
            return _published(tensors)
        if not path.is_file():
            raise UserError(f"--config {option} is neither a config.json nor the preset emu_14b.")
        return read_config(path)
    llama = None
    for source in sources:
        folder = source if source.is_dir() else source.parent
        values = read_json(folder / CONFIG)
        if values.get("model_type") == "llama":
            rows = _rows(tensors, values.get("vocab_size", 32000))
            llama = from_llama_config(values, vocab_size=rows + SPECIAL_TOKENS, source=str(folder / CONFIG))
        elif "decoder" in values or "cformer" in values or isinstance(values.get("model"), dict):
            return read_config(folder / CONFIG)
    sizes = _published(tensors) if llama is None else dataclasses.replace(emu_14b(), decoder=llama)
    if is_release(tensors):
        return sizes
    return dataclasses.replace(sizes, vision=_vision_sizes(tensors) or sizes.vision)


def _rows(tensors: Mapping[str, Tensor], default: int) -> int:
    return tensors[_TABLE].shape[0] if _TABLE in tensors else default


def _published(tensors: Mapping[str, Tensor]) -> EmuConfig:
    """The published sizes, where the decoder has their width (or there is none)."""
    added = 0 if is_release(tensors) else SPECIAL_TOKENS
    published = emu_14b(vocab_size=_rows(tensors, 32000 if added else 32004) + added)
    width = tensors[_TABLE].shape[-1] if _TABLE in tensors else published.decoder.width
    if width != published.decoder.width:
        raise UserError(
            f"The decoder is {width} wide, not the published {published.decoder.width}, and no {CONFIG} is beside the "
            "checkpoint; name one with --config."
        )
    return published


def _vision_sizes(tensors: Mapping[str, Tensor]) -> VisionConfig | None:
    """EVA-CLIP's sizes by its tensors' shapes; None where there is no tower."""
    try:
        patches = tensors["visual.patch_embed.proj.weight"].shape
        tokens, mlp = tensors["visual.pos_embed"].shape[1], tensors["visual.blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError:
        return None
    layers = sum(name.endswith(".attn.qkv.weight") for name in tensors)
    width, patch = patches[0], patches[-1]
    if width % EVA_HEAD_WIDTH:
        raise UserError(
            f"The vision tower is {width} wide, which heads of {EVA_HEAD_WIDTH} (EVA-01-CLIP-g) do not divide; "
            "name a config.json with --config."
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


def _dtypes(plan: Plan) -> tuple[str, str]:
    """What to compute in and to keep parameters in: half-precision files compute in bfloat16, all others in float32."""
    kinds = {np.dtype(parameter.dtype).name for parameter in plan.parameters.values()}
    if kinds <= {"float16", "bfloat16"}:
        return "bfloat16", kinds.pop() if len(kinds) == 1 else "bfloat16"
    return "float32", "float32"
