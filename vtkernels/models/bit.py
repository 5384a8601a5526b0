"""BiT: pre-activation ResNets with group normalisation and standardised filters, which need no batch statistics.

Kolesnikov et al., "Big Transfer", 2019.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels.layers import DropPath, GroupNorm, StdConv2d, linear_rates
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register

Conv = partial(StdConv2d, bias=False, std_eps=1e-8)


@dataclass(frozen=True, kw_only=True)
class BiTConfig(Config):
    """A BiT network.

    Attributes:
        depths: blocks of each stage.
        width: factor on all channels.
        stem_width: channels of the stem before `width`; stage s puts out four times as many, times 2^s.
        groups: of every group normalisation.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 1
    stem_width: int = 64
    groups: int = 32

    def stage_channels(self, stage: int) -> int:
        return 4 * self.stem_width * self.width * 2**stage


class Projection(nn.Module):
    """The shortcut where shapes change, without a norm: it is given what is normalised already."""

    def __init__(self, dim: int, out: int, stride: int):
        super().__init__()
        self.conv = Conv(dim, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PreActBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each after norm and ReLU, and nothing after the addition."""

    def __init__(self, dim: int, out: int, stride: int, groups: int, drop_path: float):
        super().__init__()
        inner = out // 4
        self.downsample = Projection(dim, out, stride) if stride != 1 or dim != out else None
        self.norm1 = GroupNorm(dim, groups)
        self.conv1 = Conv(dim, inner, 1)
        self.norm2 = GroupNorm(inner, groups)
        self.conv2 = Conv(inner, inner, 3, stride, 1)
        self.norm3 = GroupNorm(inner, groups)
        self.conv3 = Conv(inner, out, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return shortcut + self.drop_path(self.conv3(F.relu(self.norm3(y))))


class BiT(ConvNet):
    classifiers = ("head.fc",)

    def __init__(self, config: BiTConfig):
        super().__init__(config)
        dim = config.stem_width * config.width
        # without a ReLU before it, padding by zeros is not padding by minus infinity
        self.stem = nn.ModuleDict({"conv": Conv(config.in_channels, dim, 7, 2, 3), "pad": nn.ZeroPad2d(1), "pool": nn.MaxPool2d(3, 2)})
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            blocks = nn.Sequential()
            for index in range(depth):
                blocks.append(PreActBottleneck(dim, config.stage_channels(stage), 2 if stage and not index else 1, config.groups, next(rates)))
                dim = config.stage_channels(stage)
            self.stages.append(nn.ModuleDict({"blocks": blocks}))
        self.norm = GroupNorm(dim, config.groups)
        self.head = nn.ModuleDict({"fc": self.new_classifier(dim)})
        self.initialise()

    def initialise_classifier(self, head: nn.Linear) -> None:
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)

    def _features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self._maps(x)[-1]))

    @property
    def _stages(self) -> list[nn.Sequential]:
        return [stage["blocks"] for stage in self.stages]

    def _stem(self, x: Tensor) -> Tensor:
        for layer in self.stem.values():
            x = layer(x)
        return x

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(self.config.stage_channels(stage), 4 * 2**stage) for stage in range(len(self.config.depths))]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.norm = nn.Identity()

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"stages.{stage}.blocks.{index}",) for stage, depth in enumerate(self.config.depths) for index in range(depth)]
        return [("stem",), *blocks, ("norm", "head")]

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        converted = _from_original(state) if any("standardized_conv2d" in name for name in state) else dict(state)
        # timm's and the original's head is a 1x1 convolution
        weight = converted.get("head.fc.weight")
        if weight is not None and weight.dim() == 4:
            converted["head.fc.weight"] = weight.flatten(1)
        return converted


def _from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the published .npz files: blocks count from 1, a unit's parts a, b, c hold a norm and the convolution after it, kernels end in (in, out)."""
    converted = {}
    for name, value in state.items():
        name = name.removeprefix("resnet/")
        if name.endswith("kernel"):
            value = value.permute(3, 2, 0, 1)
        leaf = {"gamma": "weight", "beta": "bias", "kernel": "weight", "bias": "bias"}.get(name.rpartition("/")[2])
        if name.startswith("block"):
            block, unit, part, *rest = name.split("/")
            target = f"stages.{int(block.removeprefix('block')) - 1}.blocks.{int(unit.removeprefix('unit')) - 1}"
            number = "abc".index(part) + 1
            layer = "downsample.conv" if rest[0] == "proj" else f"norm{number}" if rest[0] == "group_norm" else f"conv{number}"
            name = f"{target}.{layer}.{leaf}"
        elif name.startswith("root_block/"):
            name = f"stem.conv.{leaf}"
        elif name.startswith("group_norm/"):
            name = f"norm.{leaf}"
        elif name.startswith("head/"):
            name = f"head.fc.{leaf}"
        converted[name] = value
    return converted


def _variant(parameters: int, gmacs: float | None = None, top1: float | None = None, source: str = "arXiv:1912.11370", **fields: object) -> Variant:
    return Variant(BiTConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source))


R50 = {"depths": (3, 4, 6, 3)}
R101 = {"depths": (3, 4, 23, 3)}
R152 = {"depths": (3, 8, 36, 3)}

# top-1 of those trained on ImageNet-21k first and then at 448 px (152x4: 480 px)
register(
    BiT,
    {
        "bit_nano": _variant(166_000, source="for tests and demonstrations", img_size=32, depths=(1, 2, 1), stem_width=8, groups=4),
        "resnetv2_50x1_bit": _variant(25_549_352, 4.23, 80.386, **R50),
        "resnetv2_50x2_bit": _variant(97_988_712, **R50, width=2),
        "resnetv2_50x3_bit": _variant(217_319_080, 37.06, 83.982, **R50, width=3),
        "resnetv2_50x4_bit": _variant(383_540_456, **R50, width=4),
        "resnetv2_101x1_bit": _variant(44_541_480, None, 82.332, **R101),
        "resnetv2_101x2_bit": _variant(173_852_776, **R101, width=2),
        "resnetv2_101x3_bit": _variant(387_934_888, None, 84.430, **R101, width=3),
        "resnetv2_101x4_bit": _variant(686_787_816, **R101, width=4),
        "resnetv2_152x1_bit": _variant(60_185_128, **R152),
        "resnetv2_152x2_bit": _variant(236_335_208, 46.95, 84.468, **R152, width=2),
        "resnetv2_152x3_bit": _variant(528_451_240, **R152, width=3),
        "resnetv2_152x4_bit": _variant(936_533_224, 186.9, 84.936, **R152, width=4),
    },
)
