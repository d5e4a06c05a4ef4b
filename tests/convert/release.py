"""A very small Emu with random weights in the release's layout, for tests that read and change its files."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from emu_jax.convert.emu_config import to_release_config
from emu_jax.convert.emu_table import emu_table, peft_name, unused_shapes
from emu_jax.io.safetensors_files import header_bytes, write_safetensors
from emu_jax.io.tensors import Tensor, tensor_of
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig


def small_config(*, lora: bool = False, layers: int = 2, dim: int = 16) -> EmuConfig:
    """Return sizes that differ wherever possible, so that a transposed weight has a wrong shape."""
    return EmuConfig(
        vision=VisionConfig(image_size=8, patch_size=4, width=dim, num_layers=layers, num_heads=2, mlp_dim=3 * dim),
        causal_former=CausalFormerConfig(
            num_image_tokens=3, width=24, num_layers=layers, num_heads=2, head_dim=10, mlp_dim=40
        ),
        decoder=DecoderConfig(
            vocab_size=300, width=dim + 4, num_layers=layers, num_heads=2, num_kv_heads=2, mlp_dim=44, max_length=64
        ),
        lora=LoraConfig(rank=3) if lora else None,
    )


def random_state(config: EmuConfig, *, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    """Return random values for every tensor of the release, by name."""
    rng = np.random.default_rng(seed)
    shapes = released_shapes(config)
    return {name: rng.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()}


def write_release(folder: Path, config: EmuConfig, state: dict[str, np.ndarray], *, shard_bytes: int = 10**12) -> Path:
    """Write `state` and config.json in the release's layout. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in to_release_config(config).items() if key != "emu_jax"}
    (folder / "config.json").write_text(json.dumps(values))
    write_state(folder, state, shard_bytes=shard_bytes)
    return folder


def write_state(folder: Path, state: dict[str, np.ndarray], *, shard_bytes: int = 10**12) -> None:
    """Write the tensors as safetensors, without a config."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder, [tensor_of(name, array) for name, array in state.items()], shard_bytes=shard_bytes)


def write_sparse(file: Path, shapes: dict[str, tuple[int, ...]], *, dtype=np.float32) -> None:
    """Write a sparse safetensors file of zeros, which uses no disk space for its tensors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = [Tensor(name, shape, np.dtype(dtype), lambda: None) for name, shape in shapes.items()]
    with file.open("wb") as handle:
        handle.write(header_bytes(tensors))
        handle.truncate(handle.tell() + sum(tensor.nbytes for tensor in tensors))


def released_shapes(config: EmuConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of every tensor of the release, by the name in its file."""
    shapes = {name: row.torch_shape for row in emu_table(config) for name in row.names} | unused_shapes(config)
    rename = peft_name if config.lora is not None else (lambda name: name)
    return {rename(name): shape for name, shape in shapes.items()}


def published_shapes(table: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a published state dict, from tests/data/shapes."""
    lines = (Path(__file__).parents[1] / "data" / "shapes" / table).read_text().splitlines()
    return {name: tuple(map(int, shape.split(","))) for name, shape in (line.split("\t") for line in lines)}


def with_parts(config: EmuConfig, **parts) -> EmuConfig:
    """Return `config` with fields of its parts replaced: `with_parts(config, vision={"image_size": 16})`."""
    replaced = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in parts.items()}
    return dataclasses.replace(config, **replaced)
