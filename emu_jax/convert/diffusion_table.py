"""Where each parameter of U-Net and autoencoder lies in diffusers' files: a table, read in both directions."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig, VAEConfig
from emu_jax.errors import UserError

VECTOR, MATRIX, KERNEL = (0,), (1, 0), (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter. Ours is theirs, transposed by `permutation`, then given our shape (same elements, same order)."""

    torch: str
    ours: str  # "/"-joined path
    shape: tuple[int, ...]  # in the torch file
    permutation: tuple[int, ...]

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return array.transpose(self.permutation).reshape(shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        permuted = [self.shape[axis] for axis in self.permutation]
        return array.reshape(permuted).transpose(np.argsort(self.permutation))


Table = tuple[Row, ...]


def unet_table(config: UNetConfig) -> Table:
    """Every parameter of the U-Net."""
    channels = config.block_out_channels
    time, cross, last = 4 * channels[0], config.cross_attention_dim, len(channels) - 1

    def layer(torch: str, ours: str, index: int, inputs: int, outputs: int, crossed: bool) -> Iterator[Row]:
        yield from _resnet(f"{torch}.resnets.{index}", f"{ours}_resnets_{index}", inputs, outputs, time)
        if crossed:
            names = f"{torch}.attentions.{index}", f"{ours}_attentions_{index}"
            yield from _transformer(*names, outputs, cross, config)

    def rows() -> Iterator[Row]:
        yield from _conv("conv_in", "conv_in", config.in_channels, channels[0])
        yield from _linear("time_embedding.linear_1", "time_embedding/linear_1", channels[0], time)
        yield from _linear("time_embedding.linear_2", "time_embedding/linear_2", time, time)
        skips = [channels[0]]
        width = channels[0]
        for level, kind in enumerate(config.down_block_types):
            names = f"down_blocks.{level}", f"down_blocks_{level}"
            for index in range(config.layers_per_block):
                yield from layer(*names, index, width, channels[level], kind == CROSS_DOWN)
                width = channels[level]
                skips.append(width)
            if level < last:
                yield from _conv(f"{names[0]}.downsamplers.0.conv", f"{names[1]}_downsample/conv", width, width)
                skips.append(width)
        yield from layer("mid_block", "mid_block", 0, width, width, crossed=True)
        yield from layer("mid_block", "mid_block", 1, width, width, crossed=False)
        for step, kind in enumerate(config.up_block_types):
            names = f"up_blocks.{step}", f"up_blocks_{step}"
            for index in range(config.layers_per_block + 1):
                yield from layer(*names, index, width + skips.pop(), channels[last - step], kind == CROSS_UP)
                width = channels[last - step]
            if step < last:
                yield from _conv(f"{names[0]}.upsamplers.0.conv", f"{names[1]}_upsample/conv", width, width)
        yield from _norm("conv_norm_out", "norm_out", width)
        yield from _conv("conv_out", "conv_out", width, config.out_channels)

    return tuple(rows())


def vae_table(config: VAEConfig) -> Table:
    """Every parameter of the autoencoder."""
    channels, latent = config.block_out_channels, config.latent_channels

    def middle(torch: str, ours: str) -> Iterator[Row]:
        width = channels[-1]
        yield from _resnet(f"{torch}.resnets.0", f"{ours}/resnets_0", width, width)
        if config.mid_block_add_attention:
            theirs, mine = f"{torch}.attentions.0", f"{ours}/attentions_0"
            yield from _norm(f"{theirs}.group_norm", f"{mine}/norm", width)
            for name, full in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "out")):
                yield from _linear(f"{theirs}.{name}", f"{mine}/{full}", width, width)
        yield from _resnet(f"{torch}.resnets.1", f"{ours}/resnets_1", width, width)

    def rows() -> Iterator[Row]:
        width = channels[0]
        yield from _conv("encoder.conv_in", "encoder/conv_in", config.in_channels, width)
        for level, features in enumerate(channels):
            theirs, mine = f"encoder.down_blocks.{level}", f"encoder/down_blocks_{level}"
            for index in range(config.layers_per_block):
                yield from _resnet(f"{theirs}.resnets.{index}", f"{mine}_resnets_{index}", width, features)
                width = features
            if level < len(channels) - 1:
                yield from _conv(f"{theirs}.downsamplers.0.conv", f"{mine}_downsample/conv", width, width)
        yield from middle("encoder.mid_block", "encoder/mid_block")
        yield from _norm("encoder.conv_norm_out", "encoder/norm_out", width)
        yield from _conv("encoder.conv_out", "encoder/conv_out", width, 2 * latent)
        yield from _conv("quant_conv", "quant_conv", 2 * latent, 2 * latent, size=1)
        yield from _conv("post_quant_conv", "post_quant_conv", latent, latent, size=1)
        yield from _conv("decoder.conv_in", "decoder/conv_in", latent, width)
        yield from middle("decoder.mid_block", "decoder/mid_block")
        for step, features in enumerate(channels[::-1]):
            theirs, mine = f"decoder.up_blocks.{step}", f"decoder/up_blocks_{step}"
            for index in range(config.layers_per_block + 1):
                yield from _resnet(f"{theirs}.resnets.{index}", f"{mine}_resnets_{index}", width, features)
                width = features
            if step < len(channels) - 1:
                yield from _conv(f"{theirs}.upsamplers.0.conv", f"{mine}_upsample/conv", width, width)
        yield from _norm("decoder.conv_norm_out", "decoder/norm_out", width)
        yield from _conv("decoder.conv_out", "decoder/conv_out", width, config.out_channels)

    return tuple(rows())


def to_ours(table: Table, source: Mapping[str, np.ndarray], shapes: Any) -> dict[str, Any]:
    """Parameters from a torch state dict.

    Args:
      table: `unet_table` or `vae_table`.
      source: arrays by torch name, may be lazy.
      shapes: the unboxed parameter tree, or its shapes, that is wanted.

    Raises:
      UserError: names that are in one of the two alone (both lists are given), or a shape that differs.
    """
    wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
    missing = sorted({row.torch for row in table} - set(source))
    unused = sorted(set(source) - {row.torch for row in table})
    if missing or unused:
        raise UserError(
            f"The weights do not fit the config: the file lacks {_listed(missing)}; it holds unused {_listed(unused)}."
        )
    params = {}
    for row in table:
        array = source[row.torch]
        if array.shape != row.shape:
            raise UserError(
                f"{row.torch} has shape {list(array.shape)} in the file; the config says {list(row.shape)}."
            )
        params[row.ours] = row.to_ours(array, wanted[row.ours].shape)
    return flax.traverse_util.unflatten_dict(params, sep="/")


def to_torch(table: Table, params: Any) -> dict[str, np.ndarray]:
    """The torch state dict of an unboxed parameter tree; fails as `to_ours` does."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    missing = sorted({row.ours for row in table} - set(flat))
    unused = sorted(set(flat) - {row.ours for row in table})
    if missing or unused:
        raise UserError(
            f"The parameters do not fit the config: missing {_listed(missing)}; without a row {_listed(unused)}."
        )
    for row in table:
        if math.prod(row.shape) != math.prod(flat[row.ours].shape):
            raise UserError(f"{row.ours} has shape {list(flat[row.ours].shape)}; the config says {list(row.shape)}.")
    return {row.torch: np.ascontiguousarray(row.to_torch(np.asarray(flat[row.ours]))) for row in table}


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _linear(torch: str, ours: str, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[Row]:
    yield Row(f"{torch}.weight", f"{ours}/kernel", (outputs, inputs), MATRIX)
    if bias:
        yield Row(f"{torch}.bias", f"{ours}/bias", (outputs,), VECTOR)


def _conv(torch: str, ours: str, inputs: int, outputs: int, *, size: int = 3) -> Iterator[Row]:
    yield Row(f"{torch}.weight", f"{ours}/kernel", (outputs, inputs, size, size), KERNEL)
    yield Row(f"{torch}.bias", f"{ours}/bias", (outputs,), VECTOR)


def _norm(torch: str, ours: str, width: int) -> Iterator[Row]:
    yield Row(f"{torch}.weight", f"{ours}/scale", (width,), VECTOR)
    yield Row(f"{torch}.bias", f"{ours}/bias", (width,), VECTOR)


def _resnet(torch: str, ours: str, inputs: int, outputs: int, time: int | None = None) -> Iterator[Row]:
    yield from _norm(f"{torch}.norm1", f"{ours}/norm1", inputs)
    yield from _conv(f"{torch}.conv1", f"{ours}/conv1", inputs, outputs)
    if time is not None:
        yield from _linear(f"{torch}.time_emb_proj", f"{ours}/time_projection", time, outputs)
    yield from _norm(f"{torch}.norm2", f"{ours}/norm2", outputs)
    yield from _conv(f"{torch}.conv2", f"{ours}/conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{torch}.conv_shortcut", f"{ours}/shortcut", inputs, outputs, size=1)


def _transformer(torch: str, ours: str, width: int, cross: int, config: UNetConfig) -> Iterator[Row]:
    def project(theirs: str, mine: str) -> Iterator[Row]:
        if config.use_linear_projection:
            return _linear(theirs, mine, width, width)
        return _conv(theirs, mine, width, width, size=1)

    yield from _norm(f"{torch}.norm", f"{ours}/norm", width)
    yield from project(f"{torch}.proj_in", f"{ours}/project_in")
    for index in range(config.transformer_layers_per_block):
        theirs, mine = f"{torch}.transformer_blocks.{index}", f"{ours}/blocks_{index}"
        for number, name, source in ((1, "self_attention", width), (2, "cross_attention", cross)):
            yield from _norm(f"{theirs}.norm{number}", f"{mine}/norm{number}", width)
            attention = f"{theirs}.attn{number}", f"{mine}/{name}"
            yield from _linear(f"{attention[0]}.to_q", f"{attention[1]}/query", width, width, bias=False)
            yield from _linear(f"{attention[0]}.to_k", f"{attention[1]}/key", source, width, bias=False)
            yield from _linear(f"{attention[0]}.to_v", f"{attention[1]}/value", source, width, bias=False)
            yield from _linear(f"{attention[0]}.to_out.0", f"{attention[1]}/out", width, width)
        yield from _norm(f"{theirs}.norm3", f"{mine}/norm3", width)
        yield from _linear(f"{theirs}.ff.net.0.proj", f"{mine}/mlp/up", width, 8 * width)
        yield from _linear(f"{theirs}.ff.net.2", f"{mine}/mlp/down", 4 * width, width)
    yield from project(f"{torch}.proj_out", f"{ours}/project_out")
