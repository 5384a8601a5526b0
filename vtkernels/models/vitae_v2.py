"""ViTAEv2: four layers of reduction and normal cells, of which the first two attend inside windows.

Zhang et al., "ViTAEv2: Vision Transformer Advanced by Exploring Inductive Bias for Image Recognition and Beyond", 2022.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Attention, Mlp, TokenAttention, linear_rates, to_tokens
from vtkernels.models._base import Config
from vtkernels.models._registry import Info, Variant, register
from vtkernels.models.vitae import DILATIONS, RATIOS, Layer, NormalCell, PyramidReduction, Vitae, check_groups, conv_branch
from vtkernels.ops.window_attention import window_attention


@dataclass(frozen=True, kw_only=True)
class VitaeV2Config(Config):
    """A ViTAEv2. `drop_path` grows linearly over all normal cells; the official code repeats parts of its ramp by mistake.

    Attributes:
        embed_widths: channels of each dilated convolution, by layer.
        token_widths: channels after each layer.
        depths, heads, groups: normal cells of each layer, their attention heads, the groups of their convolutions.
        reduction_heads, reduction_groups: those of the reduction cells.
        window_layers: how many layers attend inside windows, from the first on.
        window_size: edge of the windows, which are neither shifted nor biased.
        mlp_ratio: of the normal cells.
    """

    embed_widths: tuple[int, ...] = (64, 64, 128, 256)
    token_widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    reduction_heads: tuple[int, ...] = (1, 1, 2, 4)
    groups: tuple[int, ...] = (1, 32, 64, 128)
    reduction_groups: tuple[int, ...] = (1, 16, 32, 64)
    window_layers: int = 2
    window_size: int = 7
    mlp_ratio: float = 4.0
    dropout: float = 0.0


class WindowTokenAttention(nn.Module):
    """[B, H W, dim] -> [B, H W, width]: attention inside windows of the grid, which is padded with zeros on all sides to a multiple of them."""

    def __init__(self, dim: int, width: int, num_heads: int, window_size: int, proj_drop: float = 0.0):
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.qkv = nn.Linear(dim, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(proj_drop)

    def padded_qkv(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, int]:
        """The projection of the padded map, and the rows and columns of padding before it."""
        (rows, columns), window = grid, self.window_size
        more_rows, more_columns = -rows % window, -columns % window
        top, left = more_rows // 2, more_columns // 2
        x = F.pad(x.unflatten(1, grid), (0, 0, left, more_columns - left, top, more_rows - top))
        return self.qkv(x), top, left

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        qkv, top, left = self.padded_qkv(x, grid)
        x = window_attention(qkv, num_heads=self.num_heads, window_size=self.window_size)
        x = x[:, top : top + grid[0], left : left + grid[1]]
        return self.proj_drop(self.proj(x.flatten(1, 2)))

    def attention_weights(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B windows, h, N, N]: what `forward` weighs the values with. Windows of an image follow each other, row by row."""
        qkv, window = self.padded_qkv(x, grid)[0], self.window_size
        # [B, rows, columns, N, 3, h, D]
        qkv = qkv.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(3, 4).unflatten(-1, (3, self.num_heads, -1))
        q, k, _ = qkv.flatten(0, 2).permute(2, 0, 3, 1, 4)
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window_size={self.window_size}"


def attend(attn: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    return attn(x, grid) if isinstance(attn, WindowTokenAttention) else attn(x)


class ReductionBlock(nn.Module):
    """Attention that changes the width of its tokens, joined by what a branch beside it made, then an MLP."""

    def __init__(self, dim: int, width: int, attn: nn.Module):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, width)

    def forward(self, x: Tensor, beside: Tensor, grid: tuple[int, int]) -> Tensor:
        x = attend(self.attn, self.norm1(x), grid) + beside
        return x + self.mlp(self.norm2(x))


class ReductionCellV2(nn.Module):
    """A map [B, C, H, W] to tokens of a coarser grid."""

    def __init__(self, config: VitaeV2Config, channels: int, layer: int):
        super().__init__()
        embed, width, heads = config.embed_widths[layer], config.token_widths[layer], config.reduction_heads[layer]
        groups = config.reduction_groups[layer]
        check_groups(config, groups, channels, embed, width)
        self.ratio = RATIOS[layer]
        self.PRM = PyramidReduction(channels, embed, layer)
        strides = (2, self.ratio // 2, 1)
        self.PCM = conv_branch((channels, embed, embed, width), groups, (True, True, False), activate_last=False, strides=strides)
        dim = embed * len(DILATIONS[layer])
        windowed = layer < config.window_layers
        attn = WindowTokenAttention(dim, width, heads, config.window_size) if windowed else TokenAttention(dim, width, (width // heads) ** -0.5, heads)
        self.attn = ReductionBlock(dim, width, attn)

    def forward(self, x: Tensor) -> Tensor:
        grid = (-(-x.shape[2] // self.ratio), -(-x.shape[3] // self.ratio))
        return self.attn(self.PRM(x), to_tokens(self.PCM(x)), grid)


class NormalCellV2(NormalCell):
    def mix(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return attend(self.attn, x, grid)


class VitaeV2(Vitae):
    config: VitaeV2Config

    @staticmethod
    def new_layers(config: VitaeV2Config) -> Iterator[Layer]:
        _check(config)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        for index, (channels, width) in enumerate(pairwise((config.in_channels, *config.token_widths))):
            heads, hidden, groups = config.heads[index], int(width * config.mlp_ratio), config.groups[index]
            check_groups(config, groups, width, hidden)
            cells = []
            for _ in range(config.depths[index]):
                if index < config.window_layers:
                    attn = WindowTokenAttention(width, width, heads, config.window_size, proj_drop=config.dropout)
                else:
                    attn = Attention(width, heads, proj_drop=config.dropout)
                branch = conv_branch((width, hidden, width, width), groups, (True, True, False), activate_last=False)
                cells.append(NormalCellV2(width, attn, hidden, branch, config.dropout, next(rates)))
            yield Layer(ReductionCellV2(config, channels, index), cells)


def _check(config: VitaeV2Config) -> None:
    fields = ("embed_widths", "token_widths", "depths", "heads", "reduction_heads", "groups", "reduction_groups")
    lengths = {name: len(getattr(config, name)) for name in fields}
    if len(set(lengths.values())) != 1 or lengths["depths"] > len(RATIOS):
        expected = f"be of one length, {len(RATIOS)} at most"
        check.fail("VitaeV2Config", ", ".join(fields), expected, list(lengths.values()))
    for name in ("heads", "reduction_heads"):
        for width, heads in zip(config.token_widths, getattr(config, name), strict=True):
            if width % heads:
                check.fail("VitaeV2Config", name, "divide token_widths", f"{heads} heads for {width} channels")


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, classes: int = 1000, **fields: object) -> Variant:
    return Variant(VitaeV2Config(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, classes=classes, source="arXiv:2202.10108"))


NANO = {
    "img_size": 32,
    "embed_widths": (8, 8, 16, 16),
    "token_widths": (16, 16, 32, 48),
    "depths": (1, 1, 2, 1),
    "heads": (1, 2, 2, 4),
    "reduction_heads": (1, 1, 2, 4),
    "groups": (1, 4, 8, 16),
    "reduction_groups": (1, 4, 8, 16),
    "mlp_ratio": 2.0,
}
M48 = {"embed_widths": (64, 64, 192, 384), "token_widths": (96, 192, 384, 768), "depths": (2, 2, 11, 2)}
BASE = {
    "embed_widths": (96, 96, 256, 512),
    "token_widths": (128, 256, 512, 1024),
    "depths": (2, 2, 12, 2),
    "heads": (1, 4, 8, 16),
    "reduction_heads": (1, 1, 4, 8),
}

register(
    VitaeV2,
    {
        "vitaev2_nano_32": _variant(124_794, None, classes=10, **NANO),
        "vitaev2_small": _variant(19_355_688, 5.75, 82.6),
        "vitaev2_48m": _variant(48_674_632, 13.34, 83.8, **M48),
        "vitaev2_base": _variant(89_693_352, 24.37, 84.6, **BASE),
    },
)
