"""The CvT of the DRLOC experiments: convolutions throughout, neither class token nor final norm.

Liu et al., "Efficient Training of Visual Transformers with Small Datasets", 2021. It is not the network of the CvT paper,
which `cvt.py` has, and their weights do not fit each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels.layers import DropPath, linear_rates
from vtkernels.models._base import Config, MapInfo, Model
from vtkernels.models._registry import Info, Variant, register
from vtkernels.models.cvt import check_stages


@dataclass(frozen=True, kw_only=True)
class CvtDrlocConfig(Config):
    """A CvT of the DRLOC code. Published ones have no stochastic depth.

    Attributes:
        widths, depths, heads: channels, blocks and attention heads of each stage.
        head_dim: channels of a head, whatever the stage's width.
        mlp_ratio: hidden channels of the MLPs over their input's.
    """

    widths: tuple[int, ...] = (64, 192, 384)
    depths: tuple[int, ...] = (1, 2, 10)
    heads: tuple[int, ...] = (1, 3, 6)
    head_dim: int = 64
    mlp_ratio: int = 4
    norm_eps: float = 1e-5
    dropout: float = 0.0


class ChannelNorm(nn.Module):
    """Normalises the channels of [B, C, H, W] by their standard deviation plus `eps`, unlike layer normalisation."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # half precision would round small variances to 0, where the root has no derivative
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = precise - precise.mean(1, keepdim=True)
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        return (centred / (deviation + self.eps) * self.g + self.b).to(x.dtype)


class PreNorm(nn.Module):
    """x + fn(norm(x)), under stochastic depth."""

    def __init__(self, dim: int, fn: nn.Module, eps: float, drop_path: float):
        super().__init__()
        self.norm = ChannelNorm(dim, eps)
        self.fn = fn
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fn(self.norm(x)))


class Projection(nn.Module):
    """A depthwise convolution, batch normalisation, and a map of the channels."""

    def __init__(self, dim: int, out: int, stride: int):
        super().__init__()
        convolution = nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=False)
        self.net = nn.Sequential(convolution, nn.BatchNorm2d(dim), nn.Conv2d(dim, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class MapAttention(nn.Module):
    """[B, C, H, W] -> [B, C, H, W]; keys and values, which share a convolution, live on every second row and column."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, dropout: float):
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.dropout = dropout
        self.to_q = Projection(dim, inner, stride=1)
        self.to_kv = Projection(dim, 2 * inner, stride=2)
        self.to_out = nn.Sequential(nn.Conv2d(inner, dim, 1), nn.Dropout(dropout))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, h, N, D], k and v [B, h, M, D]."""
        q, k, v = (t.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3) for t in (self.to_q(x), *self.to_kv(x).chunk(2, 1)))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.to_out(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, tuple(x.shape[2:])))

    def attention_weights(self, x: Tensor) -> Tensor:
        """[B, h, N, M]: what `forward` weighs the values with."""
        q, k, _ = self.heads(x)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1)


class MapMlp(nn.Module):
    """The feed-forward layer, on every pixel of a map."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Dropout(dropout), nn.Conv2d(hidden, dim, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Blocks(nn.Module):
    """`layers[i]` holds the i-th block's two branches."""

    def __init__(self, config: CvtDrlocConfig, stage: int, rates: list[float]):
        super().__init__()
        dim, eps, dropout = config.widths[stage], config.norm_eps, config.dropout
        self.layers = nn.ModuleList()
        for rate in rates:
            attention = MapAttention(dim, config.heads[stage], config.head_dim, dropout)
            branches = (attention, MapMlp(dim, dim * config.mlp_ratio, dropout))
            self.layers.append(nn.Sequential(*(PreNorm(dim, branch, eps, rate) for branch in branches)))


class CvTDrloc(Model):
    def __init__(self, config: CvtDrlocConfig):
        super().__init__(config)
        check_stages("CvtDrlocConfig", config.widths, config.depths, config.heads)
        rates = linear_rates(config.drop_path, sum(config.depths))
        channels, self.layers = config.in_channels, nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            kernel, stride = (3, 2) if stage else (7, 4)
            embed = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
            blocks, rates = Blocks(config, stage, rates[:depth]), rates[depth:]
            self.layers.append(nn.ModuleList((embed, ChannelNorm(width, config.norm_eps), blocks)))
            channels = width
        # every layer keeps the values torch drew, as published
        self.head = self.new_classifier(channels)

    def initialise_classifier(self, head: nn.Linear) -> None:
        head.reset_parameters()

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for embed, norm, blocks in self.layers:
            x = norm(embed(x))
            for block in blocks.layers:
                x = self.run(block, x)
            maps.append(x)
        return maps

    def _features(self, x: Tensor) -> Tensor:
        return self._maps(x)[-1]

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(width, 4 << stage) for stage, width in enumerate(self.config.widths)]

    def no_weight_decay(self) -> set[str]:
        # they have four dimensions, though they are norms
        return {name for name, _ in self.named_parameters() if name.endswith((".g", ".b"))}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        groups: list[tuple[str, ...]] = []
        for stage, depth in enumerate(self.config.depths):
            groups.append((f"layers.{stage}.0", f"layers.{stage}.1"))
            groups += [(f"layers.{stage}.2.layers.{index}",) for index in range(depth)]
        return [*groups, ("head",)]

    def grid(self, x: Tensor) -> tuple[int, int]:
        """(rows, columns) of the last map."""
        reduction = 4 << len(self.config.widths) - 1
        return -(-x.shape[2] // reduction), -(-x.shape[3] // reduction)


def _variant(parameters: int, source: str = "arXiv:2106.03746", classes: int = 1000, **fields) -> Variant:
    return Variant(CvtDrlocConfig(**fields), Info(parameters=parameters, source=source, classes=classes))


NANO = {"img_size": 32, "widths": (16, 32, 48), "depths": (1, 1, 2), "heads": (1, 2, 3), "head_dim": 16}

register(
    CvTDrloc,
    {
        "cvt_drloc_nano_32": _variant(96_826, "for tests and demonstrations", 10, **NANO),
        "cvt_drloc_13": _variant(19_936_296),
    },
)
