"""Conversion tables of the U-Net and the autoencoder in diffusers' layout."""

from collections.abc import Iterator

from emu_jax.convert.table import KERNEL, MATRIX, VECTOR, Row, Table
from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig, VAEConfig

Split = tuple[tuple[int, ...], tuple[int, ...]]


def unet_table(config: UNetConfig) -> Table:
    """Return the rows of all parameters of the U-Net."""
    channels = config.block_out_channels
    time, last = 4 * channels[0], len(channels) - 1

    def layer(torch: str, ours: str, index: int, inputs: int, level: int, *, cross: bool) -> Iterator[Row]:
        outputs = channels[level]
        yield from _resnet(f"{torch}.resnets.{index}", f"{ours}_resnets_{index}", inputs, outputs, time)
        if cross:
            names = f"{torch}.attentions.{index}", f"{ours}_attentions_{index}"
            yield from _transformer(*names, outputs, config.num_heads[level], config)

    def rows() -> Iterator[Row]:
        yield from _conv("conv_in", "conv_in", config.in_channels, channels[0])
        yield from _linear("time_embedding.linear_1", "time_embedding/linear_1", channels[0], time)
        yield from _linear("time_embedding.linear_2", "time_embedding/linear_2", time, time)
        skips = [channels[0]]
        width = channels[0]
        for level, kind in enumerate(config.down_block_types):
            names = f"down_blocks.{level}", f"down_blocks_{level}"
            for index in range(config.layers_per_block):
                yield from layer(*names, index, width, level, cross=kind == CROSS_DOWN)
                width = channels[level]
                skips.append(width)
            if level < last:
                yield from _conv(f"{names[0]}.downsamplers.0.conv", f"{names[1]}_downsample/conv", width, width)
                skips.append(width)
        yield from layer("mid_block", "mid_block", 0, width, last, cross=True)
        yield from layer("mid_block", "mid_block", 1, width, last, cross=False)
        for step, kind in enumerate(config.up_block_types):
            names = f"up_blocks.{step}", f"up_blocks_{step}"
            for index in range(config.layers_per_block + 1):
                yield from layer(*names, index, width + skips.pop(), last - step, cross=kind == CROSS_UP)
                width = channels[last - step]
            if step < last:
                yield from _conv(f"{names[0]}.upsamplers.0.conv", f"{names[1]}_upsample/conv", width, width)
        yield from _norm("conv_norm_out", "norm_out", width)
        yield from _conv("conv_out", "conv_out", width, config.out_channels)

    return tuple(rows())


def vae_table(config: VAEConfig) -> Table:
    """Return the rows of all parameters of the autoencoder."""
    channels, latent = config.block_out_channels, config.latent_channels

    def middle(torch: str, ours: str) -> Iterator[Row]:
        width = channels[-1]
        yield from _resnet(f"{torch}.resnets.0", f"{ours}/resnets_0", width, width)
        if config.mid_block_add_attention:
            theirs, mine = f"{torch}.attentions.0", f"{ours}/attentions_0"
            yield from _norm(f"{theirs}.group_norm", f"{mine}/norm", width)
            yield from _attention(theirs, mine, width, width, 1, qkv_bias=True)
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


def _linear(
    torch: str, ours: str, inputs: int, outputs: int, *, bias: bool = True, split: Split | None = None
) -> Iterator[Row]:
    """Yield the rows of a linear map. `split` has our shapes of its input and output axes if they are not flat."""
    ins, outs = split or ((inputs,), (outputs,))
    yield Row(f"{torch}.weight", (outputs, inputs), f"{ours}/kernel", (*ins, *outs), MATRIX)
    if bias:
        yield Row(f"{torch}.bias", (outputs,), f"{ours}/bias", outs, VECTOR)


def _conv(torch: str, ours: str, inputs: int, outputs: int, *, size: int = 3) -> Iterator[Row]:
    """Yield the rows of a convolution. A convolution of size 1 is a linear map here."""
    kernel = (size, size, inputs, outputs) if size > 1 else (inputs, outputs)
    yield Row(f"{torch}.weight", (outputs, inputs, size, size), f"{ours}/kernel", kernel, KERNEL)
    yield Row(f"{torch}.bias", (outputs,), f"{ours}/bias", (outputs,), VECTOR)


def _norm(torch: str, ours: str, width: int) -> Iterator[Row]:
    yield Row(f"{torch}.weight", (width,), f"{ours}/scale", (width,), VECTOR)
    yield Row(f"{torch}.bias", (width,), f"{ours}/bias", (width,), VECTOR)


def _attention(torch: str, ours: str, width: int, source: int, heads: int, *, qkv_bias: bool) -> Iterator[Row]:
    """Yield the rows of an attention layer with queries of `width` and keys and values of `source` channels."""
    head_shape = (heads, width // heads)
    for name, path, inputs in (("to_q", "query", width), ("to_k", "key", source), ("to_v", "value", source)):
        split = (inputs,), head_shape
        yield from _linear(f"{torch}.{name}", f"{ours}/{path}", inputs, width, bias=qkv_bias, split=split)
    yield from _linear(f"{torch}.to_out.0", f"{ours}/out", width, width, split=(head_shape, (width,)))


def _resnet(torch: str, ours: str, inputs: int, outputs: int, time: int | None = None) -> Iterator[Row]:
    yield from _norm(f"{torch}.norm1", f"{ours}/norm1", inputs)
    yield from _conv(f"{torch}.conv1", f"{ours}/conv1", inputs, outputs)
    if time is not None:
        yield from _linear(f"{torch}.time_emb_proj", f"{ours}/time_projection", time, outputs)
    yield from _norm(f"{torch}.norm2", f"{ours}/norm2", outputs)
    yield from _conv(f"{torch}.conv2", f"{ours}/conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{torch}.conv_shortcut", f"{ours}/shortcut", inputs, outputs, size=1)


def _transformer(torch: str, ours: str, width: int, heads: int, config: UNetConfig) -> Iterator[Row]:
    def project(theirs: str, mine: str) -> Iterator[Row]:
        if config.use_linear_projection:
            return _linear(theirs, mine, width, width)
        return _conv(theirs, mine, width, width, size=1)

    yield from _norm(f"{torch}.norm", f"{ours}/norm", width)
    yield from project(f"{torch}.proj_in", f"{ours}/project_in")
    for index in range(config.transformer_layers_per_block):
        theirs, mine = f"{torch}.transformer_blocks.{index}", f"{ours}/blocks_{index}"
        for number, name, source in ((1, "self_attention", width), (2, "cross_attention", config.cross_attention_dim)):
            yield from _norm(f"{theirs}.norm{number}", f"{mine}/norm{number}", width)
            yield from _attention(f"{theirs}.attn{number}", f"{mine}/{name}", width, source, heads, qkv_bias=False)
        yield from _norm(f"{theirs}.norm3", f"{mine}/norm3", width)
        halves = (width,), (2, 4 * width)  # value and gate
        yield from _linear(f"{theirs}.ff.net.0.proj", f"{mine}/mlp/up", width, 8 * width, split=halves)
        yield from _linear(f"{theirs}.ff.net.2", f"{mine}/mlp/down", 4 * width, width)
    yield from project(f"{torch}.proj_out", f"{ours}/project_out")
