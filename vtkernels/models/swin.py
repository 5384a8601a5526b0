"""Swin: windows of attention, shifted in every other block, on a pyramid of maps.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Block, carry_positions, linear_rates, resize_positions, truncated_normal_linears, xavier_normal
from vtkernels.models._base import Config, MapInfo, Model
from vtkernels.models._registry import Info, Variant, register
from vtkernels.nn import WindowAttention

TABLE = "relative_position_bias_table"
INITS = ("timm", "xavier")
# what published files store although it follows from the sizes
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask", "k_bias")


@dataclass(frozen=True, kw_only=True)
class SwinConfig(Config):
    """A Swin.

    Attributes:
        width: channels of the first stage; each further stage has twice as many.
        depths, heads: blocks and attention heads of each stage.
        window: edge of the windows, or (rows, columns). A stage whose map at `img_size` is smaller takes the map's edge.
        mlp_ratio: hidden channels of the MLPs over their input's.
        absolute_positions: whether a learned table is added to the patches, which ties the model to `img_size`.
        shift_first: whether a map that windows do not divide is shifted, then padded (timm), or the other way round (torchvision).
        init: initial weights as in "timm", or of Glorot's normal distribution ("xavier"), by which a narrow model learns from its first updates on.
    """

    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int | tuple[int, int] = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    absolute_positions: bool = False
    shift_first: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init: str = "timm"


class SwinPatches(nn.Module):
    """[B, C, H, W] -> [B, ceil(H / p), ceil(W / p), D]: patches of p x p pixels, normalised; zeros fill the last ones."""

    def __init__(self, patch_size: int, in_channels: int, dim: int, eps: float):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.proj.kernel_size
        if x.shape[2] % rows or x.shape[3] % columns:
            x = F.pad(x, (0, -x.shape[3] % columns, 0, -x.shape[2] % rows))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def merge_neighbours(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 4 C], the four tokens down the columns first; zeros fill the last ones."""
    if x.shape[1] % 2 or x.shape[2] % 2:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)


class PatchMerging(nn.Module):
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(merge_neighbours(x)))


class SwinBlock(Block):
    """The pre-norm block on a map [B, H, W, C], its windows shifted by `shift` on the axes where there are several."""

    def __init__(self, *args: object, shift: tuple[int, int], **options: object):
        super().__init__(*args, **options)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), self.shift))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """`downsample` halves the map; `blocks` follow."""

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


class SwinTransformer(Model):
    """Any image size goes: whether a block's windows are shifted is decided for the map that arrives. Window sizes are fixed by `img_size`."""

    classifiers = ("head.fc",)
    attention: ClassVar[type[nn.Module]] = WindowAttention
    block: ClassVar[type[nn.Module]] = SwinBlock
    merging: ClassVar[type[nn.Module]] = PatchMerging

    def __init__(self, config: SwinConfig):
        super().__init__(config)
        _check(config)
        self.fixed_size = config.absolute_positions
        self.patch_embed = self.new_patches()
        self.absolute_pos_embed = None
        if config.absolute_positions:
            rows, columns = self.grid_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, rows * columns, config.width))
        self.pos_drop = nn.Dropout(config.dropout)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        self.layers = nn.ModuleList(
            Stage(
                self.merging(config.width << stage - 1, config.norm_eps) if stage else nn.Identity(),
                [self.new_block(stage, shifted=index % 2 == 1, drop_path=next(rates)) for index in range(depth)],
            )
            for stage, depth in enumerate(config.depths)
        )
        width = config.width << len(config.depths) - 1
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        # timm's name for the classifier
        self.head = nn.Sequential(OrderedDict(fc=self.new_classifier(width)))
        self.initialise()

    def new_patches(self) -> nn.Module:
        config = self.config
        return SwinPatches(config.patch_size, config.in_channels, config.width, config.norm_eps)

    def new_block(self, stage: int, shifted: bool, drop_path: float) -> nn.Module:
        config, width, window = self.config, self.config.width << stage, self.window_size(stage)
        return self.block(
            width,
            self.new_attention(stage, width, window),
            int(width * config.mlp_ratio),
            eps=config.norm_eps,
            drop=config.dropout,
            drop_path=drop_path,
            shift=(window[0] // 2, window[1] // 2) if shifted else (0, 0),
        )

    def new_attention(self, stage: int, width: int, window: tuple[int, int]) -> nn.Module:
        config = self.config
        return self.attention(
            width,
            window,
            config.heads[stage],
            config.qkv_bias,
            attn_drop=config.attention_dropout,
            proj_drop=config.dropout,
            shift_first=config.shift_first,
        )

    def initialise(self) -> None:
        if self.config.init == "xavier":
            xavier_normal(self)
        else:
            truncated_normal_linears(self)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def initialise_classifier(self, head: nn.Linear) -> None:
        if self.config.init == "xavier":
            xavier_normal(head)
        else:
            super().initialise_classifier(head)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of the patches at `img_size`."""
        height, width = self.config.size
        return -(-height // self.config.patch_size), -(-width // self.config.patch_size)

    def window_size(self, stage: int) -> tuple[int, int]:
        rows, columns = check.pair("SwinConfig", "window", self.config.window)
        height, width = (-(-edge // (1 << stage)) for edge in self.grid_size)
        return min(rows, height), min(columns, width)

    def _stages(self, x: Tensor) -> Iterable[Tensor]:
        """Maps [B, H, W, C] after each stage."""
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed.unflatten(1, self.grid_size)
        x = self.pos_drop(x)
        for stage in self.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run(block, x)
            yield x

    def _features(self, x: Tensor) -> Tensor:
        *_, x = self._stages(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))

    def _maps(self, x: Tensor) -> list[Tensor]:
        return [x.permute(0, 3, 1, 2) for x in self._stages(x)]

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(self.config.width << stage, self.config.patch_size << stage) for stage in range(len(self.config.depths))]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.norm = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(TABLE) or name == "absolute_pos_embed"}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        groups: list[tuple[str, ...]] = [("patch_embed", "absolute_pos_embed")]
        for stage, depth in enumerate(self.config.depths):
            blocks = [f"layers.{stage}.blocks.{index}" for index in range(depth)]
            groups += [(f"layers.{stage}.downsample", blocks[0]), *((block,) for block in blocks[1:])]
        return [*groups, ("norm", "head")]

    def grid(self, x: Tensor) -> tuple[int, int]:
        return -(-x.shape[2] // self.config.patch_size), -(-x.shape[3] // self.config.patch_size)

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # SimMIM's files have a decoder beside it
        if "encoder.patch_embed.proj.weight" in state:
            state = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
        if "features.0.0.weight" in state:
            state = _from_torchvision(state)
        # the official code merges at the end of a stage, timm at the start of the next
        elif any(name.startswith("layers.0.downsample.") for name in state):
            state = {_next_stage(name): value for name, value in state.items()}
        renames = {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}
        return {renames.get(name, name): value for name, value in state.items() if not name.endswith(DERIVED)}

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        own, resized = self.state_dict(), carry_positions(state, "absolute_pos_embed", self.grid_size)
        for name in [name for name in state if name.endswith(TABLE) and name in own]:
            table, window = state[name], self.get_submodule(name.removesuffix(f".{TABLE}")).window_size
            side = math.isqrt(table.shape[0])
            if own[name].shape != table.shape and side * side == table.shape[0]:
                span = (2 * window[0] - 1, 2 * window[1] - 1)
                state[name] = resize_positions(table[None], (side, side), span)[0]
                resized.append(name)
        return resized


def _check(config: SwinConfig) -> None:
    if not config.depths or len(config.depths) != len(config.heads) or min(config.depths) < 1:
        check.fail("SwinConfig", "depths and heads", "give as many stages, each of one block or more", f"{config.depths} and {config.heads}")
    if config.patch_size < 1:
        check.fail("SwinConfig", "patch_size", "be positive", config.patch_size)
    if config.init not in INITS:
        check.fail("SwinConfig", "init", f"be one of {', '.join(INITS)}", repr(config.init))


def _next_stage(name: str) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name)


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision numbers patches, stages and mergings in turn: 0, 1, 2, ..."""
    renames = ((".mlp.0.", ".mlp.fc1."), (".mlp.3.", ".mlp.fc2."), ("features.0.0.", "patch_embed.proj."), ("features.0.2.", "patch_embed.norm."))
    converted = {}
    for name, value in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        if match := re.match(r"features\.(\d+)\.(.*)", name):
            index, rest = int(match[1]), match[2]
            name = f"layers.{index // 2}.{'blocks' if index % 2 else 'downsample'}.{rest}"
        converted[name] = value
    return converted


def _variant(
    parameters: int, gmacs: float | None, top1: float | None = None, source: str = "arXiv:2103.14030", classes: int = 1000, **fields: object
) -> Variant:
    return Variant(SwinConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


TINY = {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}
SMALL = {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)}
BASE = {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
LARGE = {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)}
AT_384 = {"img_size": 384, "window": 12}
AT_32 = {"classes": 10, "img_size": 32, "window": 4}
AT_64 = {"classes": 200, "img_size": 64, "window": 4}
NANO = {"patch_size": 4, "width": 32, "depths": (2, 2), "heads": (2, 4)}
# Lee et al., "Vision Transformer for Small-Size Datasets", 2021
SMALL_DATA = {"source": "arXiv:2112.13492", "depths": (2, 6, 4), "heads": (3, 6, 12), "mlp_ratio": 2.0, "absolute_positions": True}

register(
    SwinTransformer,
    {
        "swin_nano_patch4_window4_32": _variant(136_822, None, source="for tests and demonstrations", **AT_32, **NANO),
        "swin_tiny_patch4_window7_224": _variant(28_288_354, 4.5, 81.2, **TINY),
        "swin_small_patch4_window7_224": _variant(49_606_258, 8.7, 83.2, **SMALL),
        "swin_base_patch4_window7_224": _variant(87_768_224, 15.4, 83.5, **BASE),
        "swin_base_patch4_window12_384": _variant(87_903_584, 47.1, 84.5, **AT_384, **BASE),
        "swin_large_patch4_window7_224": _variant(196_532_476, 34.5, 86.3, **LARGE),
        "swin_large_patch4_window12_384": _variant(196_735_516, 103.9, 87.3, **AT_384, **LARGE),
        "swin_tiny_c24_patch4_window8_256": _variant(28_306_432, 5.9, 81.6, **TINY | {"img_size": 256, "window": 8, "heads": (4, 8, 16, 32)}),
        "swin_tiny_patch2_window4_32": _variant(27_505_108, 0.358, patch_size=2, **AT_32, **TINY),
        "swin_tiny_patch4_window4_32": _variant(27_505_300, 0.089, **AT_32, **TINY),
        "swin_tiny_patch4_window4_64": _variant(27_654_674, 0.359, **AT_64, **TINY),
        "swin_small_data_patch2_window4_32": _variant(7_073_188, 0.242, patch_size=2, **AT_32, **SMALL_DATA),
        "swin_small_data_patch4_window4_64": _variant(7_149_794, None, **AT_64, **SMALL_DATA),
    },
)
