"""A small U-Net for images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genflow.checks import count, non_negative
from genflow.network.condition import Conditional, field_names
from genflow.network.time import TimeFeatures
from genflow.tensors import as_shape, batch_time


def groups(channels: int) -> int:
    """Groups of a normalisation: at most 8, of at least 4 channels where there are as many."""
    most = min(8, max(1, channels // 4))
    return max(k for k in range(1, most + 1) if channels % k == 0)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its weights zero: what it is added to starts unchanged."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Norm(nn.GroupNorm):
    """Group normalisation and SiLU; its scale and shift are its own, or one of each for every row."""

    def __init__(self, channels: int) -> None:
        super().__init__(groups(channels), channels)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if scale is None or not len(x):
            return F.silu(super().forward(x))
        # rows as groups of one long row: its weights are then those of every row, in a single pass
        b, c, *size = x.shape
        weight, bias = self.weight * (1 + scale), torch.addcmul(shift, self.bias, 1 + scale)
        long = x.reshape(1, b * c, *size)
        out = F.group_norm(long, b * self.num_groups, weight.flatten(), bias.flatten(), self.eps)
        return F.silu(out).reshape(x.shape)


class Block(nn.Module):
    """Two convolutions around which the input is added; the embedding scales and shifts between."""

    def __init__(self, channels: int, out: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(channels), Norm(out)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.modulation = nn.Linear(embedding, 2 * out)
        self.dropout = nn.Dropout(dropout)
        self.around = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.norm2(h, *self.modulation(e).chunk(2, 1))
        return self.around(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Self-attention of all pixels, added to them."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.inputs = nn.Conv2d(channels, 3 * channels, 1)
        self.output = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.inputs(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.unbind(1)  # (B, heads, channels of a head, pixels)
        # of few pixels: torch's fused kernel wants another layout, and its bfloat16 gradient on CPUs
        # takes five times as long
        weight = ((q * q.shape[2] ** -0.5).mT @ k).softmax(-1)
        return x + self.output((v @ weight.mT).reshape(x.shape))


class Stage(nn.Module):
    """A block, and attention where it is wanted."""

    def __init__(
        self, channels: int, out: int, embedding: int, dropout: float, heads: int | None
    ) -> None:
        super().__init__()
        self.block = Block(channels, out, embedding, dropout)
        self.attention = nn.Identity() if heads is None else Attention(out, heads)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.attention(self.block(x, e))


class UNet(Conditional):
    """A U-Net ``f(t, x, cond) -> (B, C, H, W)`` for images, or one field for each of several names.

    Residual blocks on the way down and up (Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic
    models"), each of which time and condition scale and shift (Dhariwal & Nichol 2021, "Diffusion
    models beat GANs on image synthesis"). What a block on the way down found is added, through a
    linear map of its channels, to what its counterpart on the way up receives: cheaper than
    concatenation. Sizes are halved between levels: three take 28 x 28 to 7 x 7. The last layer of each
    block, and of the network, starts at zero: an untrained network returns zeros.

    Under autocast the result still has the dtype of ``x``.

    Args:
        dim: event shape ``[C, H, W]``; height and width must be multiples of ``2^(levels - 1)``.
        width: unit of the channels.
        multipliers: channels of each level, in widths; their number is that of the levels.
        blocks: of each level, on either way.
        attention: for each level, whether its blocks are followed by self-attention.
        heads: of attention; they share the channels of a level.
        dropout: probability of a zero before the last convolution of each block.
        frequencies: of :class:`TimeFeatures`.
        classes, cond_dim, outputs: as in :class:`MLP`.

    Raises:
        ValueError: for sizes that are no positive whole numbers or do not fit each other, both kinds of
            condition, outputs that are no different names, and in ``forward`` for an event shape or a
            condition that do not fit.
    """

    def __init__(
        self,
        dim: Sequence[int],
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[bool] = (False, False, True),
        heads: int = 4,
        dropout: float = 0.0,
        frequencies: int = 16,
        classes: int | Sequence[int] | None = None,
        cond_dim: int | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.multipliers, self.blocks = dim, width, multipliers, blocks
        self.attention, self.heads, self.dropout = attention, heads, dropout
        self.frequencies, self.outputs = frequencies, outputs
        self.shape = as_shape(dim)
        self._check()
        fields = 1 if outputs is None else len(field_names(self, outputs))
        size = 4 * width
        self._take(classes, cond_dim, size)

        self.time = TimeFeatures(frequencies)
        self.embed = nn.Sequential(nn.Linear(self.time.size, size), nn.SiLU(), nn.Linear(size, size))
        self.vector = None if cond_dim is None else nn.Linear(cond_dim, size)
        channels = [width * k for k in multipliers]
        wanted = [heads if wants else None for wants in attention]

        def level(k: int, first: int) -> nn.ModuleList:
            c, last = channels[k], (size, dropout, wanted[k])
            return nn.ModuleList(Stage(start, c, *last) for start in (first, *[c] * (blocks - 1)))

        levels, pairs = range(len(channels)), list(itertools.pairwise(channels))
        c, bottom = channels[-1], (size, dropout)
        self.first = nn.Conv2d(self.shape[0], channels[0], 3, padding=1)
        self.down = nn.ModuleList(level(k, channels[max(k - 1, 0)]) for k in levels)
        self.shrink = nn.ModuleList(nn.Conv2d(a, a, 3, 2, 1) for a, _ in pairs)
        self.middle = nn.ModuleList((Stage(c, c, *bottom, wanted[-1]), Stage(c, c, *bottom, None)))
        self.up = nn.ModuleList(level(k, channels[k]) for k in levels)
        self.skip = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(c, c, 1) for _ in range(blocks)) for c in channels
        )
        # before sizes are doubled: four times cheaper than after
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairs)
        self.norm = Norm(channels[0])
        self.last = zeroed(nn.Conv2d(channels[0], fields * self.shape[0], 3, padding=1))

    def _check(self) -> None:
        count(self, width=self.width, blocks=self.blocks, heads=self.heads)
        non_negative(self, dropout=self.dropout)
        if self.dropout >= 1:
            raise ValueError(f"UNet(dropout={self.dropout!r}): dropout must lie below 1")
        for k in self.multipliers or (0,):
            count(self, multipliers=k)
        halvings = len(self.multipliers) - 1
        factor = 2**halvings
        if len(self.shape) != 3:
            raise ValueError(f"UNet(dim={self.dim!r}): dim must be [channels, height, width]")
        if any(size % factor for size in self.shape[1:]):
            raise ValueError(
                f"UNet(dim={self.dim!r}): height and width must be multiples of {factor} to be halved "
                f"{halvings} times; pad the images, or give fewer multipliers"
            )
        if len(self.attention) != len(self.multipliers):
            raise ValueError(
                f"UNet(attention={self.attention!r}): give one of True and False for each of the "
                f"{len(self.multipliers)} levels"
            )
        for k, wants in zip(self.multipliers, self.attention):
            if wants and (self.width * k) % self.heads:
                raise ValueError(
                    f"UNet(heads={self.heads}): heads must divide the {self.width * k} channels of "
                    "each level with attention"
                )

    def forward(
        self, t: Tensor | float, x: Tensor, cond: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"UNet(dim={self.dim}) got events of shape {tuple(x.shape[1:])}, expected {self.shape}"
            )
        e = self.embed(self.time(batch_time(t, x)))
        for given in self._condition(cond, x):
            e = e + (given if self.vector is None else self.vector(given))
        e, h, skips = F.silu(e), self.first(x), []
        for k, level in enumerate(self.down):
            h = self.shrink[k - 1](h) if k else h
            for stage, skip in zip(level, self.skip[k]):
                h = stage(h, e)
                skips.append(skip(h))
        for stage in self.middle:
            h = stage(h, e)
        for k in reversed(range(len(self.up))):
            for stage in self.up[k]:
                h = stage(h + skips.pop(), e)
            h = F.interpolate(self.grow[k - 1](h), scale_factor=2.0) if k else h
        out = self.last(self.norm(h)).to(x.dtype)
        return out if self.outputs is None else dict(zip(self.outputs, out.chunk(len(self.outputs), 1)))
