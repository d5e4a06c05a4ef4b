"""Export a model directory to PyTorch's files.

The layouts are that of the release, a LLaMA folder with the rest in `emu/`, and a folder that transformers opens with
`trust_remote_code`.

A visual decoder is written as `unet/`, `vae/` and `scheduler/` next to the Emu, where the release expects it.
The export streams: one of our parameters is in memory at a time, and its layers are written one after the other.
"""

import dataclasses
import enum
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from emu_jax.checkpoints.lora import add_product
from emu_jax.checkpoints.model_config import CONFIG, find_config, read_config
from emu_jax.checkpoints.model_directory import (
    PARAMS,
    TOKENIZER,
    VISUAL_DECODER,
    existing,
    open_unused,
    params_directory,
    run_folder,
)
from emu_jax.checkpoints.params import naming_good_step
from emu_jax.checkpoints.streaming import StoredParams
from emu_jax.convert.diffusion_folder import DecoderFiles, copy_decoder, is_diffusers_folder
from emu_jax.convert.emu_config import LLAMA_CONFIG, to_llama_config, to_release_config
from emu_jax.convert.emu_table import DECODER, base_layer_name, emu_table, peft_name, rotary_frequencies, unused_shapes
from emu_jax.convert.huggingface_tokenizer import tokenizer_files
from emu_jax.convert.release_files import LLAMA_TOKENIZER, generation_config, release_files, special_tokens
from emu_jax.convert.sources import MULTIMODAL_ENCODER
from emu_jax.convert.table import Row, check_params, to_tensors
from emu_jax.convert.transformers_export import write_transformers_files
from emu_jax.data.tokenizer import piece_count
from emu_jax.errors import UserError
from emu_jax.io.files import atomic_folder, read_json, write_json
from emu_jax.io.safetensors_files import SHARD_BYTES, write_safetensors
from emu_jax.io.tensors import Progress, Tensor, no_progress
from emu_jax.io.torch_files import write_torch
from emu_jax.models.config import EmuConfig

DECODER_STAGES = ("vae", "visual_decoder")  # their runs have no Emu; their result is in WORKDIR/visual_decoder
EMU_FOLDER = "emu"  # of the Hugging Face layout: all parts of an Emu except the LLaMA
_REGRESSION_HEAD = DECODER + "stu_regress_head."


class Layout(enum.Enum):
    """Layout of the exported files."""

    RELEASE = "release"
    HUGGINGFACE = "huggingface"
    TRANSFORMERS = "transformers"
    PIPELINE = "pipeline"  # the Emu in `multimodal_encoder/pytorch_model.bin`, for the release's generation pipeline


@dataclasses.dataclass(frozen=True)
class PreparedExport:
    """An export whose shapes have been checked. `write` writes it.

    Attributes:
      config: of the exported Emu.
      tensors: all tensors to write, by the names of the release, in order.
      zeros: names of the tensors that the model does not have and that are written as zeros.
      tokenizer: file to copy; None if the model has none.
      visual_decoder: folder to copy; None if the model has none.
      decoder_files: form of the files of the visual decoder.
      base_layer: the names of adapted projections are those of peft 0.10 and later.
    """

    config: EmuConfig
    tensors: tuple[Tensor, ...]
    zeros: tuple[str, ...]
    tokenizer: Path | None
    visual_decoder: Path | None = None
    decoder_files: DecoderFiles | None = None
    base_layer: bool = False

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(
        self,
        destination: Path,
        *,
        layout: Layout = Layout.RELEASE,
        binary: bool = False,
        shard_bytes: int = SHARD_BYTES,
        card: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> tuple[str, ...]:
        """Write the folder, complete or not at all.

        Args:
          destination: must not exist, or be empty.
          layout: of the files.
          binary: write `pytorch_model.bin` (one file, requires PyTorch) instead of safetensors.
          shard_bytes: largest size of a safetensors file.
          card: for the model card of the layout transformers, see `transformers_export.model_card`.
          progress: called after each tensor.

        Returns:
          The paths of the files, relative to the destination.

        Raises:
          UserError: the destination exists or cannot be written, or the layout does not support this model.
        """

        if layout is Layout.PIPELINE and self.visual_decoder is None:
            raise UserError("The format pipeline requires a model with a visual decoder. Import one, or use release.")

        def write_weights(folder: Path, tensors: Sequence[Tensor]) -> None:
            if binary or layout is Layout.PIPELINE:
                write_torch(folder / "pytorch_model.bin", tensors, progress=progress)
            else:
                write_safetensors(folder, tensors, shard_bytes=shard_bytes, progress=progress)

        with atomic_folder(destination) as temporary:
            if layout is Layout.TRANSFORMERS:
                tensors = self._used_tensors()
                write_transformers_files(
                    temporary, self.config, tokenizer=self.tokenizer, dtype=self._dtype, card=card or {}
                )
                write_weights(temporary, tensors)
            elif layout is not Layout.HUGGINGFACE:
                folder = temporary / MULTIMODAL_ENCODER if layout is Layout.PIPELINE else temporary
                folder.mkdir(exist_ok=True)
                write_weights(folder, self._release_tensors())
                self._write_release_files(folder)
            else:
                llama, rest = self._split_llama()
                write_weights(temporary, llama)
                self._write_llama_config(temporary, dtype=llama[0].dtype)
                (temporary / EMU_FOLDER).mkdir()
                write_weights(temporary / EMU_FOLDER, rest)
                write_json(temporary / EMU_FOLDER / CONFIG, self._release_config(), indent=2)
            if self.tokenizer is not None:
                shutil.copyfile(self.tokenizer, temporary / TOKENIZER)
            if self.visual_decoder is not None:
                copy_decoder(self.visual_decoder, temporary, self.decoder_files)
            return _files(temporary)

    def _release_tensors(self) -> list[Tensor]:
        if self.config.lora is None:
            return list(self.tensors)
        rename = (lambda name: peft_name(base_layer_name(name))) if self.base_layer else peft_name
        return [dataclasses.replace(tensor, name=rename(tensor.name)) for tensor in self.tensors]

    def _release_config(self) -> dict[str, Any]:
        return to_release_config(
            self.config, pieces=self._pieces, embed_dim=self._rows("visual.head.weight"), dtype=self._dtype
        )

    def _write_release_files(self, folder: Path) -> None:
        """Write config.json, generation_config.json, and the files that the released class opens."""
        files = release_files(
            self.config,
            pieces=self._pieces,
            embed_dim=self._rows("visual.head.weight"),
            t5_rows=self._rows("cformer.cformer.embed_tokens.weight"),
            dtype=self._dtype,
        )
        files |= {
            CONFIG: self._release_config(),
            "generation_config.json": generation_config(pad_token_id=self._pieces),
        }
        files[f"{LLAMA_CONFIG}/generation_config.json"] = generation_config(pad_token_id=0)
        for name, values in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_json(folder / name, values, indent=2)
        if self.tokenizer is not None:
            shutil.copyfile(self.tokenizer, folder / LLAMA_CONFIG / TOKENIZER)
            write_json(folder / LLAMA_CONFIG / "tokenizer_config.json", LLAMA_TOKENIZER, indent=2)

    @property
    def _pieces(self) -> int:
        """Size of the tokenizer without Emu's special tokens."""
        if self.tokenizer is not None:
            return piece_count(self.tokenizer)
        return self.config.decoder.vocab_size - special_tokens(self.config)

    @property
    def _dtype(self) -> str:
        return np.dtype(self.tensors[0].dtype).name

    def _rows(self, name: str) -> int:
        return next(tensor.shape[0] for tensor in self.tensors if tensor.name == name)

    def _used_tensors(self) -> list[Tensor]:
        """Return the tensors that Emu reads: those of the layout transformers."""
        if self.config.lora is not None:
            raise UserError("The format transformers has no adapters. Give --merge-lora, or --format release.")
        unused = unused_shapes(self.config)
        return [t for t in self.tensors if t.name not in unused and not t.name.endswith("inv_freq")]

    def _split_llama(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors of the LLaMA by Hugging Face's names, and the rest."""
        if self.config.lora is not None:
            raise UserError("A LLaMA folder cannot have adapters. Give --merge-lora, or --format release.")
        in_llama = [t.name.startswith(DECODER) and not t.name.startswith(_REGRESSION_HEAD) for t in self.tensors]
        pairs = list(zip(self.tensors, in_llama, strict=True))
        llama = [dataclasses.replace(t, name=t.name.removeprefix(DECODER)) for t, inside in pairs if inside]
        return llama, [t for t, inside in pairs if not inside]

    def _write_llama_config(self, folder: Path, *, dtype: np.dtype) -> None:
        decoder = self.config.decoder
        config = to_llama_config(decoder, vocab_size=decoder.vocab_size, dtype=np.dtype(dtype).name)
        write_json(folder / CONFIG, config | {"pad_token_id": self._pieces}, indent=2)
        write_json(folder / "generation_config.json", generation_config(pad_token_id=self._pieces), indent=2)
        if self.tokenizer is not None:
            sizes = {"vocab_size": decoder.vocab_size, "max_length": decoder.max_length}
            for name, values in tokenizer_files(self.tokenizer, **sizes).items():
                write_json(folder / name, values, indent=2)


def prepare_export(
    checkpoint: Path,
    *,
    dtype: Any = None,
    merge_lora: bool = False,
    inv_freq: bool = False,
    base_layer: bool = False,
    variant: str | None = None,
    legacy_attention: bool = False,
) -> PreparedExport:
    """Open a model directory, a run, or one step of a run, and check its parameters against the conversion table.

    Args:
      checkpoint: the directory.
      dtype: floating-point tensors are cast to it. None: as saved.
      merge_lora: add the adapters to the weights that they adapt.
      inv_freq: write the buffers `rotary_emb.inv_freq` too, for transformers up to 4.31.
      base_layer: name adapted projections as peft 0.10 and later do.
      variant, legacy_attention: of the visual decoder, see `DecoderFiles`.

    Raises:
      UserError: there is no model, or its parameters do not fit its config.
    """
    stored_in = params_directory(checkpoint) if checkpoint.is_dir() else None
    if stored_in is None:
        raise UserError(f"{checkpoint} is not a model directory: it has no parameters.")
    with naming_good_step(stored_in):
        config_file = find_config(stored_in) or find_config(checkpoint)
    if config_file is None:
        raise UserError(f"{checkpoint} is not a model directory: it has no {CONFIG}.")
    config = read_config(Path(config_file))
    stored = StoredParams(epath.Path(os.path.abspath(stored_in)) / PARAMS)
    table = emu_table(config)
    check_params(table, {path: tuple(s.shape) for path, s in stored.shapes.items()}, source=str(stored_in))
    scale = None
    if merge_lora:
        if config.lora is None:
            raise UserError(f"{checkpoint} has no adapters to merge. Leave out --merge-lora.")
        scale = config.lora.scale
        table = tuple(row for row in table if "/lora_" not in row.path)
        config = dataclasses.replace(config, lora=None)
    tensors = [tensor for row in table for tensor in _stored_tensors(row, stored, scale)]
    unused, found = unused_shapes(config), open_unused(checkpoint)
    tensors += [
        found[name] if name in found else _zeros(name, shape, tensors[0].dtype) for name, shape in unused.items()
    ]
    if dtype is not None:
        tensors = [tensor.astype(np.dtype(dtype)) for tensor in tensors]
    if inv_freq:
        tensors += rotary_frequencies(config.decoder)
    return PreparedExport(
        config,
        tuple(tensors),
        zeros=tuple(name for name in unused if name not in found),
        tokenizer=existing(run_folder(checkpoint) / TOKENIZER),
        visual_decoder=_decoder_of(checkpoint),
        decoder_files=DecoderFiles(None if dtype is None else np.dtype(dtype), variant, legacy_attention),
        base_layer=base_layer,
    )


def decoder_only(checkpoint: Path) -> Path | None:
    """Return the diffusers folder of a checkpoint without an Emu: itself, or the result of a decoder's stage."""
    if is_diffusers_folder(checkpoint):
        return checkpoint
    config = checkpoint / CONFIG
    values = read_json(config) if config.is_file() else {}
    of_stage = isinstance(values, dict) and values.get("stage") in DECODER_STAGES
    return _decoder_of(checkpoint) if of_stage or params_directory(checkpoint) is None else None


def export_decoder(source: Path, destination: Path, files: DecoderFiles | None = None) -> tuple[str, ...]:
    """Write a diffusers folder, complete or not at all. Return the paths of its files, relative to the destination."""
    with atomic_folder(destination) as temporary:
        copy_decoder(source, temporary, files)
        return _files(temporary)


def _decoder_of(checkpoint: Path) -> Path | None:
    folder = run_folder(checkpoint) / VISUAL_DECODER
    return folder if is_diffusers_folder(folder) else None


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


def _zeros(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    return Tensor(name, shape, dtype, lambda: np.zeros(shape, dtype))


def _stored_tensors(row: Row, stored: StoredParams, scale: float | None) -> list[Tensor]:
    return to_tensors(row, lambda: _read(row, stored, scale), np.dtype(stored.shapes[row.path].dtype))


def _read(row: Row, stored: StoredParams, scale: float | None) -> np.ndarray:
    """Return the parameter. With a `scale`, add the product of its adapter, if it has one."""
    array = stored.read(row.path)
    path = row.path.removesuffix("kernel")
    if scale is None or path + "lora_a" not in stored.shapes:
        return array
    return add_product(array, stored.read(path + "lora_a"), stored.read(path + "lora_b"), scale=scale)
