"""A very small Emu of random weights in the release's layout, for tests that take files apart."""

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
    """No two sizes that could be mistaken for one another are equal, so that a transposed weight shows."""
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
    """Every tensor that the release would have, by name."""
    rng = np.random.default_rng(seed)
    shapes = released_shapes(config)
    return {name: rng.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()}


def write_release(folder: Path, config: EmuConfig, state: dict[str, np.ndarray], *, shard_bytes: int = 10**12) -> Path:
    """Writes `state` and config.json as the release's layout has them; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in to_release_config(config).items() if key != "emu_jax"}
    (folder / "config.json").write_text(json.dumps(values))
    write_state(folder, state, shard_bytes=shard_bytes)
    return folder


def write_state(folder: Path, state: dict[str, np.ndarray], *, shard_bytes: int = 10**12) -> None:
    """Writes the tensors alone, as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder, [tensor_of(name, array) for name, array in state.items()], shard_bytes=shard_bytes)


def write_sparse(file: Path, shapes: dict[str, tuple[int, ...]], *, dtype=np.float32) -> None:
    """A safetensors file of zeros that takes no disk, however large it says it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = [Tensor(name, shape, np.dtype(dtype), lambda: None) for name, shape in shapes.items()]
    with file.open("wb") as handle:
        handle.write(header_bytes(tensors))
        handle.truncate(handle.tell() + sum(tensor.nbytes for tensor in tensors))


def released_shapes(config: EmuConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the release would have, by the name that a file of it has."""
    shapes = {name: row.torch_shape for row in emu_table(config) for name in row.names} | unused_shapes(config)
    rename = peft_name if config.lora is not None else (lambda name: name)
    return {rename(name): shape for name, shape in shapes.items()}


def with_layers(config: EmuConfig, **parts) -> EmuConfig:
    """`config` with fields of its parts replaced: `with_layers(config, vision={"image_size": 16})`."""
    replaced = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in parts.items()}
    return dataclasses.replace(config, **replaced)
