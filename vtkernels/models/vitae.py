"""ViTAE: transformer blocks with a convolutional branch beside attention, behind cells that reduce the image at several scales.

Xu et al., "ViTAE: Vision Transformer Advanced by Exploring Intrinsic Inductive Bias", 2021; the plain large forms of
Zhang et al., "ViTAEv2: Vision Transformer Advanced by Exploring Inductive Bias for Image Recognition and Beyond", 2022.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import (
    Attention,
    DropPath,
    Mlp,
    PatchEmbed,
    TokenPerformer,
    carry_positions,
    linear_rates,
    prepend_tokens,
    to_map,
    to_tokens,
    truncated_normal_linears,
)
from vtkernels.models._base import Config, MapInfo, Model
from vtkernels.models._isotropic import Isotropic, IsotropicConfig
from vtkernels.models._registry import Info, Variant, register

# kernel and dilations of the reduction by 4, and of the reductions by 2 that follow
KERNELS = (7, 3, 3, 3)
RATIOS = (4, 2, 2, 2)
DILATIONS = ((1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2))


@dataclass(frozen=True, kw_only=True)
class VitaeConfig(Config):
    """A ViTAE of three layers, the last of which has the normal cells.

    Attributes:
        embed_widths: channels of each dilated convolution, by layer.
        token_widths: channels after each layer.
        depth, heads, mlp_ratio: of the normal cells.
        groups: of the convolutions beside attention.
    """

    embed_widths: tuple[int, ...] = (64, 64, 128)
    token_widths: tuple[int, ...] = (64, 64, 256)
    depth: int = 7
    heads: int = 4
    mlp_ratio: float = 2.0
    groups: int = 64
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VitaePlainConfig(IsotropicConfig):
    """A ViTAE of one width: patches, a class token and learned positions before the normal cells.

    Attributes:
        heads, mlp_ratio: of the normal cells.
        groups: of the convolutions beside attention.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    groups: int = 192
    dropout: float = 0.0


class PyramidReduction(nn.Module):
    """[B, C, H, W] -> [B, H W / ratio^2, dilations * width]: strided convolutions that see ever further, side by side."""

    def __init__(self, channels: int, width: int, layer: int):
        super().__init__()
        kernel, ratio = KERNELS[layer], RATIOS[layer]
        self.convs = nn.ModuleList()
        for dilation in DILATIONS[layer]:
            # half of what the dilated kernel reaches beyond its stride, rounded up
            padding = ((kernel - 1) * dilation + 2 - ratio) // 2
            self.convs.append(nn.Sequential(nn.Conv2d(channels, width, kernel, ratio, padding, dilation), nn.GELU()))

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(torch.cat([conv(x) for conv in self.convs], 1))


def conv_branch(widths: Sequence[int], groups: int, norms: Sequence[bool], activate_last: bool, strides: Sequence[int] = (1, 1, 1)) -> nn.Sequential:
    """3 x 3 convolutions from each of `widths` to the next, batch normalisation after those chosen, and SiLU between."""
    layers: list[nn.Module] = []
    last = len(norms) - 1
    for index, norm in enumerate(norms):
        layers.append(nn.Conv2d(widths[index], widths[index + 1], 3, strides[index], padding=1, groups=groups))
        if norm:
            layers.append(nn.BatchNorm2d(widths[index + 1]))
        if index < last or activate_last:
            layers.append(nn.SiLU())
    return nn.Sequential(*layers)


class ReductionCell(nn.Module):
    """A map [B, C, H, W] to tokens of a coarser grid: the pyramid, and with `attention` a performer beside plain convolutions."""

    def __init__(self, channels: int, embed: int, width: int, layer: int, attention: bool):
        super().__init__()
        self.PRM = PyramidReduction(channels, embed, layer)
        pyramid = embed * len(DILATIONS[layer])
        self.attn = self.PCM = None
        if attention:
            strides = (2, RATIOS[layer] // 2, 1)
            self.PCM = conv_branch((channels, embed, embed, width), 1, (False, True, False), activate_last=True, strides=strides)
            self.attn = TokenPerformer(pyramid, width)
        elif pyramid != width:
            check.fail("VitaeConfig", "token_widths", f"end with {pyramid}, all channels of the last pyramid", width, "or change embed_widths")

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.PRM(x)
        return tokens if self.attn is None else self.attn(tokens, beside=to_tokens(self.PCM(x)))


class NormalCell(nn.Module):
    """A transformer block whose attention has a convolutional branch beside it, which sees the unnormalised map of all but the first `prefix` tokens."""

    def __init__(self, width: int, attn: nn.Module, hidden: int, branch: nn.Module, drop: float, drop_path: float, prefix: int = 0):
        super().__init__()
        self.prefix = prefix
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = attn
        self.PCM = branch
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden, drop=drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        local = to_tokens(self.PCM(to_map(x[:, self.prefix :], grid)))
        x = x + self.drop_path(self.mix(self.norm1(x), grid))
        local = self.drop_path(local)
        x = x + local if self.prefix == 0 else torch.cat((x[:, : self.prefix], x[:, self.prefix :] + local), 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def mix(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.attn(x)


class Layer(nn.Module):
    """A reduction and the normal cells behind it, which the model runs one by one."""

    def __init__(self, reduction: nn.Module | None, cells: Iterable[nn.Module] = ()):
        super().__init__()
        self.RC = reduction
        self.NC = nn.ModuleList(cells)


def check_groups(config: object, groups: int, *widths: int) -> None:
    if any(width % groups for width in widths):
        check.fail(type(config).__name__, "groups", f"divide all of {', '.join(map(str, widths))}", groups)


class Vitae(Model):
    """Layers of reduction and normal cells. No class token, no positions, no norm before the head."""

    def __init__(self, config: VitaeConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(self.new_layers(config))
        self.head = self.new_classifier(config.token_widths[-1])
        truncated_normal_linears(self)

    @staticmethod
    def new_layers(config: VitaeConfig) -> Iterator[Layer]:
        channels = config.in_channels
        for index, (embed, width) in enumerate(zip(config.embed_widths[:-1], config.token_widths[:-1], strict=True)):
            yield Layer(ReductionCell(channels, embed, width, index, attention=True))
            channels = width
        width, last = config.token_widths[-1], len(config.token_widths) - 1
        hidden = int(width * config.mlp_ratio)
        reduction = ReductionCell(channels, config.embed_widths[-1], width, last, attention=False)
        check_groups(config, config.groups, width, hidden)
        cells = []
        for rate in linear_rates(config.drop_path, config.depth):
            attention = Attention(width, config.heads, proj_drop=config.dropout)
            branch = conv_branch((width, hidden, width, width), config.groups, (True, True, False), activate_last=True)
            cells.append(NormalCell(width, attention, hidden, branch, config.dropout, rate))
        yield Layer(reduction, cells)

    def check_images(self, x: Tensor) -> None:
        super().check_images(x)
        # the two branches of the first reduction round other sizes differently
        if x.shape[2] % 4 or x.shape[3] % 4:
            check.fail(type(self).__name__, "images", "have rows and columns that are multiples of 4", tuple(x.shape[2:]), "pad or resize them")

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.layers):
            grid = (-(-x.shape[2] // RATIOS[index]), -(-x.shape[3] // RATIOS[index]))
            x = self.run(layer.RC, x)
            for cell in layer.NC:
                x = self.run(cell, x, grid)
            x = to_map(x, grid)
            maps.append(x)
        return maps

    def _features(self, x: Tensor) -> Tensor:
        return self._maps(x)[-1]

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(width, 4 * 2**index) for index, width in enumerate(self.config.token_widths)]

    def grid(self, x: Tensor) -> tuple[int, int]:
        reduction = self.maps_info[-1].reduction
        return -(-x.shape[2] // reduction), -(-x.shape[3] // reduction)

    def group_prefixes(self) -> list[tuple[str, ...]]:
        return [*cell_prefixes(self.layers), ("head",)]

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # an index that the official window attention carries along and never reads
        return {name: value for name, value in state.items() if not name.endswith("relative_position_index")}


def cell_prefixes(layers: nn.ModuleList) -> list[tuple[str, ...]]:
    prefixes: list[tuple[str, ...]] = []
    for index, layer in enumerate(layers):
        prefixes += [(f"layers.{index}.RC",)] if layer.RC is not None else []
        prefixes += [(f"layers.{index}.NC.{cell}",) for cell in range(len(layer.NC))]
    return prefixes


class PatchTokens(nn.Module):
    def __init__(self, config: VitaePlainConfig, patches: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, config.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.PRM = PatchEmbed(config.patch_size, config.in_channels, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.PRM(x)
        return self.drop(prepend_tokens(x, self.cls_token) + self.pos_embed)


class VitaePlain(Isotropic):
    """Patches, then normal cells of a shallower branch; the mean of the patches is normalised and classified."""

    prefix_tokens = 1

    def __init__(self, config: VitaePlainConfig):
        super().__init__(config)
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        check_groups(config, config.groups, width, hidden)
        cells = []
        for rate in linear_rates(config.drop_path, config.depth):
            attention = Attention(width, config.heads, proj_drop=config.dropout)
            branch = conv_branch((width, hidden, width), config.groups, (True, False), activate_last=False)
            cells.append(NormalCell(width, attention, hidden, branch, config.dropout, rate, prefix=1))
        # the second of the three layers is empty in the official code, too
        self.layers = nn.ModuleList((Layer(PatchTokens(config, self.num_patches)), Layer(None), Layer(None, cells)))
        self.norm = nn.Identity()
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = self.new_classifier(width)
        truncated_normal_linears(self)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers[2].NC

    def _embed(self, x: Tensor) -> Tensor:
        return self.layers[0].RC(x)

    def _step(self, block: nn.Module, x: Tensor) -> Tensor:
        return self.run(block, x, self.grid_size)

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(self.fc_norm(features[:, 1:].mean(1)))

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.fc_norm = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {"layers.0.RC.pos_embed", "layers.0.RC.cls_token"}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        return [*cell_prefixes(self.layers), ("fc_norm", "head")]

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        return carry_positions(state, "layers.0.RC.pos_embed", self.grid_size, self.prefix_tokens)


def _info(parameters: int, gmacs: float | None, top1: float | None, classes: int, source: str) -> Info:
    return Info(parameters=parameters, gmacs=gmacs, top1=top1, classes=classes, source=source)


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, classes: int = 1000, **fields: object) -> Variant:
    return Variant(VitaeConfig(**fields), _info(parameters, gmacs, top1, classes, "arXiv:2106.03348"))


def _plain(parameters: int, gmacs: float | None, top1: float | None = None, classes: int = 1000, **fields: object) -> Variant:
    return Variant(VitaePlainConfig(**fields), _info(parameters, gmacs, top1, classes, "arXiv:2202.10108"))


NANO = {"img_size": 32, "embed_widths": (16, 16, 32), "token_widths": (16, 16, 64), "depth": 2, "groups": 16}
M13 = {"embed_widths": (64, 64, 160), "token_widths": (64, 64, 320), "depth": 11, "heads": 5}
SMALL = {"embed_widths": (64, 64, 192), "token_widths": (96, 192, 384), "depth": 14, "heads": 6, "mlp_ratio": 3.0, "groups": 96}
PLAIN_NANO = {"img_size": 32, "patch_size": 4, "width": 64, "depth": 2, "heads": 2, "groups": 16}

register(
    Vitae,
    {
        "vitae_nano_32": _variant(137_386, None, classes=10, **NANO),
        "vitae_tiny": _variant(4_886_888, 1.76, 75.3),
        "vitae_6m": _variant(6_614_120, 2.15, 77.9, depth=10),
        # as the public code builds it; the paper counts 13.2 million
        "vitae_13m": _variant(10_834_728, 3.04, **M13),
        "vitae_small": _variant(24_032_136, 6.18, 82.0, **SMALL),
    },
)
register(
    VitaePlain,
    {
        "vitae_plain_nano_patch4_32": _plain(146_634, None, classes=10, **PLAIN_NANO),
        "vitae_base": _plain(89_341_672, 18.08, 83.8),
        "vitae_large": _plain(311_724_008, None, 86.0, width=1024, depth=24, heads=16, groups=256),
        "vitae_huge": _plain(644_528_360, None, 86.9, width=1280, depth=32, heads=16, groups=320),
    },
)
