"""PoolFormer, and MetaFormers with other token mixers: four stages of blocks whose mixer may be as plain as a pooling.

Yu et al., "MetaFormer is Actually What You Need for Vision", 2021.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Attention, DropPath, LayerNorm2d, LayerScale, Mlp2d, linear_rates, to_map, to_tokens, truncated_normal_linears
from vtkernels.models._base import Config, MapInfo, Model
from vtkernels.models._registry import Info, Variant, register

MIXERS = ("pool", "identity", "attention", "spatial_fc")
NORMS = ("group", "channel")


@dataclass(frozen=True, kw_only=True)
class PoolFormerConfig(Config):
    """A PoolFormer.

    Attributes:
        depths, widths: blocks and channels of each stage.
        mixers: token mixer of each stage: "pool", "identity", "attention", or "spatial_fc", one linear layer over all pixels.
        norm: "group", over all channels and pixels of an image, or "channel", over the channels of a pixel.
        layer_scale: initial factor of the residual branches.
        stem_stride: 4; 1 or 2 for images as small as 32 pixels.
        pool_first: average the last map, then normalise it by channel, as timm does; the authors normalise first.
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    widths: tuple[int, ...] = (64, 128, 320, 512)
    mixers: tuple[str, ...] = ("pool", "pool", "pool", "pool")
    norm: str = "group"
    layer_scale: float = 1e-5
    mlp_ratio: float = 4.0
    head_dim: int = 32
    stem_stride: int = 4
    pool_first: bool = False
    activation: str = "gelu"
    dropout: float = 0.0


class Pool(nn.Module):
    """The mean of the 3 x 3 neighbourhood less the pixel itself, which the residual adds again."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) - x


class MapAttention(Attention):
    """Self-attention of all pixels of a map [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return to_map(super().forward(to_tokens(x)), x.shape[2:])

    def attention_weights(self, x: Tensor) -> Tensor:
        return super().attention_weights(to_tokens(x))


class SpatialFc(nn.Module):
    """One linear layer over the pixels of a map, the same for all channels."""

    def __init__(self, pixels: int):
        super().__init__()
        self.fc = nn.Linear(pixels, pixels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # a Linear's backward takes a view of the gradient, for which aot_eager misjudges the memory order behind channel norms
        weight = self.fc.weight.T.expand(x.shape[0], -1, -1)
        return torch.bmm(x.flatten(2), weight).unflatten(2, x.shape[2:])


class MetaFormerBlock(nn.Module):
    def __init__(self, config: PoolFormerConfig, width: int, mixer: nn.Module, drop_path: float):
        super().__init__()
        self.norm1 = _norm(config, width)
        self.token_mixer = mixer
        self.layer_scale1 = LayerScale(width, config.layer_scale, channels_first=True)
        self.norm2 = _norm(config, width)
        self.mlp = Mlp2d(width, int(width * config.mlp_ratio), act=config.activation, drop=config.dropout)
        self.layer_scale2 = LayerScale(width, config.layer_scale, channels_first=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))


class Embed(nn.Module):
    """A strided convolution and nothing more: neither norm nor activation."""

    def __init__(self, channels: int, width: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stage(nn.Module):
    """What comes before the blocks of a stage, and those blocks, which the model runs one by one."""

    def __init__(self, downsample: nn.Module, positions: nn.Parameter | None, blocks: Iterable[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.pos_embed = positions
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        return x if self.pos_embed is None else x + self.pos_embed


class Head(nn.Module):
    def __init__(self, norm: nn.Module, fc: nn.Module, pool_first: bool):
        super().__init__()
        self.norm, self.fc = norm, fc
        self.pool_first = pool_first

    def forward(self, x: Tensor) -> Tensor:
        if self.pool_first:
            return self.fc(self.norm(x.mean((2, 3), keepdim=True)).flatten(1))
        return self.fc(self.norm(x).mean((2, 3)))


class PoolFormer(Model):
    classifiers = ("head.fc",)

    def __init__(self, config: PoolFormerConfig):
        super().__init__(config)
        _check(config)
        # weights over pixels, and learned positions, fit one size only
        self.fixed_size = bool({"attention", "spatial_fc"} & set(config.mixers))
        widths = config.widths
        self.stem = Embed(config.in_channels, widths[0], kernel_size=7, stride=config.stem_stride, padding=self.stem_padding)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        self.stages = nn.ModuleList()
        for index, (depth, width, mixer) in enumerate(zip(config.depths, widths, config.mixers, strict=True)):
            downsample = Embed(widths[index - 1], width, kernel_size=3, stride=2, padding=1) if index else nn.Identity()
            rows, columns = self.stage_grid(index, config.size)
            first_attention = mixer == "attention" and "attention" not in config.mixers[:index]
            positions = nn.Parameter(torch.zeros(1, width, rows, columns)) if first_attention else None
            blocks = [MetaFormerBlock(config, width, _mixer(config, mixer, width, rows * columns), next(rates)) for _ in range(depth)]
            self.stages.append(Stage(downsample, positions, blocks))
        # the head of timm has a norm of its own kind
        norm = LayerNorm2d(widths[-1], eps=1e-6) if config.pool_first else _norm(config, widths[-1])
        self.head = Head(norm, self.new_classifier(widths[-1]), config.pool_first)
        self.initialise()

    def initialise(self) -> None:
        truncated_normal_linears(self)
        for mlp in (module for module in self.modules() if isinstance(module, Mlp2d)):
            for layer in (mlp.fc1, mlp.fc2):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    @property
    def stem_padding(self) -> int:
        """What makes the first map a stride's part of an image that the stride divides."""
        return (8 - self.config.stem_stride) // 2

    def stage_grid(self, stage: int, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the maps of a stage."""
        rows, columns = ((edge + 2 * self.stem_padding - 7) // self.config.stem_stride + 1 for edge in size)
        return -(-rows // 2**stage), -(-columns // 2**stage)

    def grid(self, x: Tensor) -> tuple[int, int]:
        return self.stage_grid(len(self.stages) - 1, (x.shape[2], x.shape[3]))

    def _maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            for block in stage.blocks:
                x = self.run(block, x)
            maps.append(x)
        return maps

    def _features(self, x: Tensor) -> Tensor:
        return self._maps(x)[-1]

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features)

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(width, self.config.stem_stride * 2**stage) for stage, width in enumerate(self.config.widths)]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.head.norm = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {f"stages.{index}.pos_embed" for index, stage in enumerate(self.stages) if stage.pos_embed is not None}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        groups: list[tuple[str, ...]] = [("stem",)]
        for stage, depth in enumerate(self.config.depths):
            first = (f"stages.{stage}.downsample", f"stages.{stage}.pos_embed")
            groups += [(f"stages.{stage}.blocks.{block}", *(first if block == 0 else ())) for block in range(depth)]
        return [*groups, ("head",)]

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_official(state) if "patch_embed.proj.weight" in state else state

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        for index, stage in enumerate(self.stages):
            name = f"stages.{index}.pos_embed"
            if stage.pos_embed is not None and name in state and state[name].shape[2:] != stage.pos_embed.shape[2:]:
                table = F.interpolate(state[name].float(), size=stage.pos_embed.shape[2:], mode="bicubic", align_corners=False)
                state[name] = table.to(state[name].dtype)
                yield name


def _norm(config: PoolFormerConfig, width: int) -> nn.Module:
    return nn.GroupNorm(1, width) if config.norm == "group" else LayerNorm2d(width)


def _mixer(config: PoolFormerConfig, mixer: str, width: int, pixels: int) -> nn.Module:
    if mixer == "attention":
        if width % config.head_dim:
            check.fail("PoolFormerConfig", "widths", f"be multiples of head_dim={config.head_dim} in stages of attention", width)
        return MapAttention(width, width // config.head_dim, qkv_bias=False, proj_drop=config.dropout)
    if mixer == "spatial_fc":
        return SpatialFc(pixels)
    return Pool() if mixer == "pool" else nn.Identity()


def _check(config: PoolFormerConfig) -> None:
    name = "PoolFormerConfig"
    if unknown := set(config.mixers) - set(MIXERS):
        check.fail(name, "mixers", f"be of {', '.join(MIXERS)}", ", ".join(sorted(unknown)))
    if config.norm not in NORMS:
        check.fail(name, "norm", f"be one of {', '.join(NORMS)}", repr(config.norm))
    if config.stem_stride not in (1, 2, 4):
        check.fail(name, "stem_stride", "be 1, 2 or 4", config.stem_stride)
    if not len(config.depths) == len(config.widths) == len(config.mixers):
        check.fail(name, "depths, widths and mixers", "be of one length", (config.depths, config.widths, config.mixers))


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official code lists stages, what lies between them and positions in one row called `network`."""
    rows = {int(name.split(".")[1]): name.split(".")[2] for name in state if name.startswith("network.")}
    owners, stage = {}, 0
    for row, first in sorted(rows.items()):
        stage += first == "proj"
        owners[row] = f"stages.{stage}." + ("downsample." if first == "proj" else "" if first == "pos_embed" else "blocks.")
    renames = (("patch_embed.proj.", "stem.conv."), (".downsample.proj.", ".downsample.conv."))
    converted = {}
    for name, value in state.items():
        if name.startswith("network."):
            _, row, rest = name.split(".", 2)
            name = owners[int(row)] + rest.replace("layer_scale_1", "layer_scale1.scale").replace("layer_scale_2", "layer_scale2.scale")
        elif name.startswith("norm."):
            name = f"head.{name}"
        elif name.startswith("head."):
            name = name.replace("head.", "head.fc.")
        for old, new in renames:
            name = name.replace(old, new)
        converted[name] = value
    return converted


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, classes: int = 1000, **fields: object) -> Variant:
    return Variant(PoolFormerConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, classes=classes, source="arXiv:2111.11418"))


MEDIUM = {"widths": (96, 192, 384, 768), "layer_scale": 1e-6}
ATTENTION, FC = "attention", "spatial_fc"
NANO = {"img_size": 32, "stem_stride": 2, "depths": (1, 1, 2, 1), "widths": (8, 16, 32, 64), "layer_scale": 0.1}

register(
    PoolFormer,
    {
        "poolformer_nano_32": _variant(79_650, None, classes=10, **NANO),
        "poolformer_s12_32": _variant(11_407_306, None, classes=10, img_size=32, stem_stride=1),
        "poolformer_s12": _variant(11_915_176, 1.8, 77.2),
        "poolformer_s24": _variant(21_388_968, 3.4, 80.3, depths=(4, 4, 12, 4)),
        "poolformer_s36": _variant(30_862_760, 5.0, 81.4, depths=(6, 6, 18, 6), layer_scale=1e-6),
        "poolformer_m36": _variant(56_172_520, 8.8, 82.1, depths=(6, 6, 18, 6), **MEDIUM),
        "poolformer_m48": _variant(73_473_448, 11.6, 82.5, depths=(8, 8, 24, 8), **MEDIUM),
        "metaformer_nano_32": _variant(88_434, None, classes=10, mixers=("identity", "pool", ATTENTION, FC), norm="channel", **NANO),
        "metaformer_id_s12": _variant(11_915_176, None, 74.3, mixers=("identity",) * 4),
        "metaformer_pppa_s12_224": _variant(14_038_440, None, mixers=("pool", "pool", "pool", ATTENTION), norm="channel"),
        "metaformer_ppaa_s12_224": _variant(16_535_592, None, 81.0, mixers=("pool", "pool", ATTENTION, ATTENTION), norm="channel"),
        "metaformer_pppf_s12_224": _variant(11_919_978, None, mixers=("pool", "pool", "pool", FC)),
        "metaformer_ppff_s12_224": _variant(12_150_474, None, mixers=("pool", "pool", FC, FC)),
    },
)
