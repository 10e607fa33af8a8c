"""The UNetModel of github.com/openai/consistency_models, written anew for tests: its names of tensors, its numbers.

Its layers: input_blocks, middle_block and output_blocks hold lists of residual, attention and sampling layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class ResBlock(nn.Module):
    def __init__(self, channels: int, told: int, out: int, *, scaled: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.scaled, self.factor = scaled, factor
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(told, 2 * out if scaled else out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def resized(self, x: Tensor) -> Tensor:
        if self.factor == 1:
            return x
        return F.avg_pool2d(x, 2) if self.factor < 1 else F.interpolate(x, scale_factor=2, mode="nearest")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resized(self.in_layers[:2](x)))
        told = self.emb_layers(emb)[..., None, None]
        if self.scaled:
            scale, shift = told.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(self.resized(x)) + h


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Channels of qkv are (three, heads, channels of a head), as "b (three h d) s" says there."""
        b, c, *size = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, -1).unbind(1)
        weight = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(c // self.heads)
        mixed = torch.einsum("bhts,bhcs->bhct", weight.softmax(-1), v)
        return x + self.proj_out(mixed.reshape(b, c, *size))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super().forward(x)


class UNetModel(nn.Module):
    """``attend``: after how many halvings there is attention (2^k is the repository's attention_resolutions)."""

    def __init__(
        self, channels: int, mult: Sequence[int], blocks: int, attend: Sequence[int], *, head_channels: int,
        classes: int | None, scaled: bool, resblock_updown: bool, colours: int = 3, out: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        told, self.channels = 4 * channels, channels
        self.time_embed = nn.Sequential(nn.Linear(channels, told), nn.SiLU(), nn.Linear(told, told))
        if classes is not None:
            self.label_emb = nn.Embedding(classes, told)

        def block(width: int, made: int, factor: float = 1.0) -> ResBlock:
            return ResBlock(width, told, made, scaled=scaled, factor=factor)

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, width // head_channels)

        width = mult[0] * channels
        down: list[nn.ModuleList] = [nn.ModuleList([First(colours, width, 3, padding=1)])]
        kept = [width]
        for stage, factor in enumerate(mult):
            for _ in range(blocks):
                layers: list[nn.Module] = [block(width, factor * channels)]
                width = factor * channels
                down.append(nn.ModuleList(layers + [attention(width)] * (stage in attend)))
                kept.append(width)
            if stage < len(mult) - 1:
                down.append(nn.ModuleList([block(width, width, 0.5) if resblock_updown else Downsample(width)]))
                kept.append(width)
        self.input_blocks = nn.ModuleList(down)
        self.middle_block = nn.ModuleList([block(width, width), attention(width), block(width, width)])
        up: list[nn.ModuleList] = []
        for stage, factor in reversed(list(enumerate(mult))):
            for index in range(blocks + 1):
                layers = [block(width + kept.pop(), factor * channels)]
                width = factor * channels
                layers += [attention(width)] * (stage in attend)
                if stage and index == blocks:
                    layers.append(block(width, width, 2.0) if resblock_updown else Upsample(width))
                up.append(nn.ModuleList(layers))
        self.output_blocks = nn.ModuleList(up)
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, out or colours, 3, padding=1))

    def forward(self, x: Tensor, times: Tensor, y: Tensor | None = None) -> Tensor:
        half = self.channels // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
        angles = times[:, None].float() * frequencies
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        if y is not None:
            emb = emb + self.label_emb(y)
        kept = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, emb)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for layers in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for layer in layers:
                x = layer(x, emb)
        return self.out(x)


def edm_denoised(net: UNetModel, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
    """``KarrasDenoiser.denoise`` of that repository, with sigma_data = 0.5, for a network of EDM."""
    level = sigma.view(-1, 1, 1, 1)
    total = level**2 + 0.5**2
    out = net(x / total.sqrt(), 1000 * 0.25 * torch.log(sigma + 1e-44), y)
    return level * 0.5 / total.sqrt() * out + 0.5**2 / total * x
