"""The vision encoder (EVA-CLIP) and the causal former of Emu in plain PyTorch.

Parameters have the names of the release. Letters in shapes: n images, S height and width of an image, P patches and
class token, C width of the image features, Q visual embeddings per image, D width of the decoder, B batch, L length,
N heads, H head dimension.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return `[B, N, L, H]` for `[B, L, N H]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return `[B, L, N H]` for `[B, N, L, H]`."""
    return x.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """Return `x / sqrt(mean(x^2) + eps) * weight`, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


class VisionAttention(nn.Module):
    """Self-attention with one kernel for q, k and v, and biases for q and v only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key, value = (split_heads(y, self.heads) for y in (query + self.q_bias, key, value + self.v_bias))
        return self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))


class VisionMlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """`x + attn(norm1(x))`, then `x + mlp(norm2(x))`."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, eps = sizes["width"], sizes["norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = VisionAttention(width, sizes["num_heads"])
        self.mlp = VisionMlp(width, sizes["mlp_dim"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Pixels `[n, 3, S, S]` to one vector per patch, row by row."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionEncoder(nn.Module):
    """EVA-CLIP without its final norm: pixels `[n, 3, S, S]` to `[n, P, C]`, the class token first."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        tokens = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = PatchEmbed(width, sizes["patch_size"])
        self.blocks = nn.ModuleList(VisionBlock(sizes) for _ in range(sizes["num_layers"]))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class FormerAttention(nn.Module):
    """T5's attention, whose scores are not scaled. `source` is the width of the keys' and values' input."""

    def __init__(self, sizes: dict[str, Any], source: int) -> None:
        super().__init__()
        width, self.heads = sizes["width"], sizes["num_heads"]
        inner = self.heads * sizes["head_dim"]
        self.q = nn.Linear(width, inner, bias=False)
        self.k, self.v = nn.Linear(source, inner, bias=False), nn.Linear(source, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        query, key, value = (split_heads(y, self.heads) for y in (self.q(x), self.k(source), self.v(source)))
        bias = None if bias is None else bias.to(query.dtype)
        return self.o(merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)))


class FormerMlp(nn.Module):
    """Two linear layers without biases, with ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.relu(self.wi(x)))


class FormerBlock(nn.Module):
    """Causal self-attention, cross-attention to the image, MLP; with a norm before and dropout after each."""

    def __init__(self, sizes: dict[str, Any], source: int, *, first: bool) -> None:
        super().__init__()
        width, eps = sizes["width"], sizes["norm_eps"]
        self.layer = nn.ModuleList(nn.ModuleDict({"layer_norm": RMSNorm(width, eps)}) for _ in range(3))
        self.layer[0]["SelfAttention"] = FormerAttention(sizes, width)
        if first:  # all blocks use its table
            table = nn.Embedding(sizes["relpos_buckets"], sizes["num_heads"])
            self.layer[0]["SelfAttention"].relative_attention_bias = table
        self.layer[1]["EncDecAttention"] = FormerAttention(sizes, source)
        self.layer[2]["DenseReluDense"] = FormerMlp(width, sizes["mlp_dim"])
        self.dropout = nn.Dropout(sizes["dropout"])

    def forward(self, x: Tensor, features: Tensor, bias: Tensor) -> Tensor:
        self_attention, cross_attention, mlp = self.layer
        normed = self_attention["layer_norm"](x)
        x = x + self.dropout(self_attention["SelfAttention"](normed, normed, bias))
        x = x + self.dropout(cross_attention["EncDecAttention"](cross_attention["layer_norm"](x), features))
        return x + self.dropout(mlp["DenseReluDense"](mlp["layer_norm"](x)))


class FormerStack(nn.Module):
    """The blocks of the causal former, with the relative bias of the first block."""

    def __init__(self, sizes: dict[str, Any], source: int) -> None:
        super().__init__()
        self.buckets, self.max_distance = sizes["relpos_buckets"], sizes["relpos_max_distance"]
        self.block = nn.ModuleList(FormerBlock(sizes, source, first=i == 0) for i in range(sizes["num_layers"]))
        self.final_layer_norm = RMSNorm(sizes["width"], sizes["norm_eps"])

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        bias = self._bias(x.shape[1], x.device)
        for block in self.block:
            x = block(x, features, bias)
        return self.final_layer_norm(x)

    def _bias(self, length: int, device: torch.device) -> Tensor:
        """Return `[1, N, Q, Q]`: T5's causal relative bias (Raffel et al. 2020), -inf for later keys."""
        index = torch.arange(length, device=device)
        distance = (index[:, None] - index[None, :]).clamp(min=0)
        exact = self.buckets // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (self.buckets - exact)).long()).clamp(max=self.buckets - 1)
        table = self.block[0].layer[0]["SelfAttention"].relative_attention_bias
        bias = table(torch.where(distance < exact, distance, far)).permute(2, 0, 1)[None]
        later = index[None, :] > index[:, None]
        return bias.masked_fill(later.to(bias.device), -math.inf)


class CausalFormer(nn.Module):
    """Image features `[n, P, C]` to visual embeddings `[n, Q, D]`."""

    def __init__(self, sizes: dict[str, Any], source: int, out: int) -> None:
        super().__init__()
        self.causal_tokens = nn.Parameter(torch.zeros(1, sizes["num_image_tokens"], sizes["width"]))
        self.cformer = FormerStack(sizes, source)
        self.projection = nn.Linear(sizes["width"], out)
        self.dropout = nn.Dropout(sizes["dropout"])

    def forward(self, features: Tensor) -> Tensor:
        queries = self.causal_tokens.expand(len(features), -1, -1)
        return self.projection(self.dropout(self.cformer(self.dropout(queries), features)))
