"""EfficientNets: depthwise bottlenecks with squeeze-and-excitation, scaled in depth, width and resolution together.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Conv2dSame, DropPath, SqueezeExcite
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register


class Stage(NamedTuple):
    """Blocks of one shape, before scaling: the first has the stride and changes the channels."""

    kernel_size: int
    stride: int
    expand: int
    channels: int
    repeats: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig(Config):
    """An EfficientNet.

    Attributes:
        stages: what is scaled.
        width, depth: factors on all channels, which are rounded to multiples of 8, and on the blocks of a stage, rounded up.
        stem, head: channels of the first and the last convolution before scaling.
        dropout: rate before the classifier.
        tensorflow: padding and batch normalisation as in the published weights: asymmetric, epsilon 0.001 and momentum 0.01.
    """

    stages: tuple[Stage, ...] = STAGES
    width: float = 1.0
    depth: float = 1.0
    stem: int = 32
    head: int = 1280
    drop_path: float = 0.2
    dropout: float = 0.2
    tensorflow: bool = False
    norm_eps: float = 1e-5

    def channels(self, base: int) -> int:
        """`width` times base: the nearest multiple of 8 that is not less by more than a tenth."""
        wanted = self.width * base
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded + 8 * (rounded < 0.9 * wanted)

    def repeats(self, stage: Stage) -> int:
        return math.ceil(self.depth * stage.repeats)

    def make_conv(self, dim: int, out: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        conv = Conv2dSame if self.tensorflow and kernel_size > 1 else nn.Conv2d
        return conv(dim, out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)

    def make_norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, 1e-3, 0.01) if self.tensorflow else nn.BatchNorm2d(channels, self.norm_eps)


class SeparableBlock(nn.Module):
    """Depthwise convolution, squeeze-and-excitation and a linear pointwise convolution; where shapes allow, beside a shortcut."""

    def __init__(self, config: EfficientNetConfig, stage: Stage, dim: int, stride: int, drop_path: float):
        super().__init__()
        out = config.channels(stage.channels)
        self.conv_dw = config.make_conv(dim, dim, stage.kernel_size, stride, dim)
        self.bn1 = config.make_norm(dim)
        self.se = _squeeze(dim, dim)
        self.conv_pw = config.make_conv(dim, out)
        self.bn2 = config.make_norm(out)
        self.shortcut = stride == 1 and dim == out
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(F.silu(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        return x + self.drop_path(y) if self.shortcut else y


class InvertedBottleneck(nn.Module):
    """A pointwise convolution to more channels, then as `SeparableBlock`."""

    def __init__(self, config: EfficientNetConfig, stage: Stage, dim: int, stride: int, drop_path: float):
        super().__init__()
        out, inner = config.channels(stage.channels), dim * stage.expand
        self.conv_pw = config.make_conv(dim, inner)
        self.bn1 = config.make_norm(inner)
        self.conv_dw = config.make_conv(inner, inner, stage.kernel_size, stride, inner)
        self.bn2 = config.make_norm(inner)
        self.se = _squeeze(inner, dim)
        self.conv_pwl = config.make_conv(inner, out)
        self.bn3 = config.make_norm(out)
        self.shortcut = stride == 1 and dim == out
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn1(self.conv_pw(x)))
        y = self.se(F.silu(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + self.drop_path(y) if self.shortcut else y


def _squeeze(channels: int, block_input: int) -> SqueezeExcite:
    """To a quarter of what came into the block, not of what it was expanded to."""
    return SqueezeExcite(channels, max(1, block_input // 4), "silu", names=("conv_reduce", "conv_expand"))


class EfficientNet(ConvNet):
    classifiers = ("classifier",)

    def __init__(self, config: EfficientNetConfig):
        super().__init__(config)
        _check(config)
        dim = config.channels(config.stem)
        self.conv_stem = config.make_conv(config.in_channels, dim, 3, 2)
        self.bn1 = config.make_norm(dim)
        rates = self._rates()
        self.blocks = nn.ModuleList()
        for stage in config.stages:
            blocks = nn.Sequential()
            for index in range(config.repeats(stage)):
                block = InvertedBottleneck if stage.expand > 1 else SeparableBlock
                blocks.append(block(config, stage, dim, 1 if index else stage.stride, next(rates)))
                dim = config.channels(stage.channels)
            self.blocks.append(blocks)
        head = config.channels(config.head)
        self.conv_head = config.make_conv(dim, head)
        self.bn2 = config.make_norm(head)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = self.new_classifier(head)
        self.initialise()

    def _rates(self) -> Iterator[float]:
        """Of stochastic depth: from 0 on, as if one more block followed the last."""
        count = sum(self.config.repeats(stage) for stage in self.config.stages)
        return (self.config.drop_path * index / count for index in range(count))

    def initialise(self) -> None:
        super().initialise(per_group=True)
        for module in self.modules():
            if isinstance(module, SqueezeExcite):
                for name in module.names:
                    nn.init.zeros_(module.get_submodule(name).bias)

    def initialise_classifier(self, head: nn.Linear) -> None:
        bound = head.out_features**-0.5
        nn.init.uniform_(head.weight, -bound, bound)
        nn.init.zeros_(head.bias)

    def _trunk(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output of the last stage, and of each before the resolution falls again."""
        x, ends = F.silu(self.bn1(self.conv_stem(x))), []
        for index, stage in enumerate(self.blocks):
            for block in stage:
                x = self.run(block, x)
            if index in self._map_stages:
                ends.append(x)
        return x, ends

    def _features(self, x: Tensor) -> Tensor:
        return F.silu(self.bn2(self.conv_head(self._trunk(x)[0])))

    def _logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features.mean((2, 3))))

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self._trunk(x)[1]

    @property
    def _map_stages(self) -> tuple[int, ...]:
        """The last stage of each resolution."""
        stages = self.config.stages
        return tuple(index for index in range(len(stages)) if index + 1 == len(stages) or stages[index + 1].stride > 1)

    @property
    def maps_info(self) -> list[MapInfo]:
        found, reduction = [], 2
        for index, stage in enumerate(self.config.stages):
            reduction *= stage.stride
            if index in self._map_stages:
                found.append(MapInfo(self.config.channels(stage.channels), reduction))
        return found

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.conv_head, self.bn2 = nn.Identity(), nn.Identity()

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"blocks.{index}.{inner}",) for index, stage in enumerate(self.blocks) for inner in range(len(stage))]
        return [("conv_stem", "bn1"), *blocks, ("conv_head", "bn2", "classifier")]

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_torchvision(state) if "features.0.0.weight" in state else state


def _check(config: EfficientNetConfig) -> None:
    for name in ("width", "depth"):
        if not getattr(config, name) > 0:
            check.fail("EfficientNetConfig", name, "be positive", getattr(config, name), "the published factors are 1 to 3.1")
    if not 0 <= config.drop_path < 1:
        check.fail("EfficientNetConfig", "drop_path", "be in [0, 1)", config.drop_path, "the published rate is 0.2")


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """There the layers of a block are numbered: expansion (if any), depthwise, squeeze-and-excitation, projection."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("features."))
    outer = {("0", "0"): "conv_stem", ("0", "1"): "bn1", (str(last), "0"): "conv_head", (str(last), "1"): "bn2"}
    with_expansion = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "se", "3.0": "conv_pwl", "3.1": "bn3"}
    without = {"0.0": "conv_dw", "0.1": "bn1", "1": "se", "2.0": "conv_pw", "2.1": "bn2"}
    squeeze = {"fc1": "conv_reduce", "fc2": "conv_expand"}
    converted = {}
    for name, value in state.items():
        parts = name.split(".")
        leaf = parts[-1]
        if parts[0] == "classifier":
            name = f"classifier.{leaf}"
        elif parts[0] == "features" and (parts[1], parts[2]) in outer and len(parts) == 4:
            name = f"{outer[parts[1], parts[2]]}.{leaf}"
        elif parts[0] == "features":
            _, stage, index, _, layer, inner, _ = parts
            names = with_expansion if f"features.{stage}.{index}.block.3.0.weight" in state else without
            target = f"{names[layer]}.{squeeze[inner]}" if inner in squeeze else names[f"{layer}.{inner}"]
            name = f"blocks.{int(stage) - 1}.{index}.{target}.{leaf}"
        converted[name] = value
    return converted


# found for B0 and scaled by hand-rounded powers of 1.2 (depth), 1.1 (width) and 1.15 (resolution)
SCALES = {
    "b0": {"width": 1.0, "depth": 1.0, "img_size": 224, "dropout": 0.2},
    "b1": {"width": 1.0, "depth": 1.1, "img_size": 240, "dropout": 0.2},
    "b2": {"width": 1.1, "depth": 1.2, "img_size": 260, "dropout": 0.3},
    "b3": {"width": 1.2, "depth": 1.4, "img_size": 300, "dropout": 0.3},
    "b4": {"width": 1.4, "depth": 1.8, "img_size": 380, "dropout": 0.4},
    "b5": {"width": 1.6, "depth": 2.2, "img_size": 456, "dropout": 0.4},
    "b6": {"width": 1.8, "depth": 2.6, "img_size": 528, "dropout": 0.5},
    "b7": {"width": 2.0, "depth": 3.1, "img_size": 600, "dropout": 0.5},
}
# parameters, multiply-accumulates, top-1 of the paper and of the published weights
FACTS = {
    "b0": (5_288_548, 0.40, 77.1, 76.542),
    "b1": (7_794_184, 0.71, 79.1, 78.546),
    "b2": (9_109_994, 1.02, 80.1, 79.612),
    "b3": (12_233_232, 1.87, 81.6, 80.878),
    "b4": (19_341_616, 4.49, 82.9, 82.598),
    "b5": (30_389_784, 10.46, 83.6, 83.170),
    "b6": (43_040_704, 19.40, 84.0, 84.124),
    "b7": (66_347_960, 38.33, 84.3, 84.424),
}


def _variant(parameters: int, gmacs: float | None, top1: float | None, source: str = "arXiv:1905.11946", **fields: object) -> Variant:
    return Variant(EfficientNetConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source))


NANO_STAGES = (Stage(3, 1, 1, 8, 1), Stage(3, 2, 4, 16, 2), Stage(5, 2, 4, 24, 1))

register(
    EfficientNet,
    {
        "efficientnet_nano": _variant(
            122_248, None, None, "for tests and demonstrations", img_size=32, stages=NANO_STAGES, stem=8, head=96, depth=1.1, dropout=0.1, tensorflow=True
        )
    }
    | {f"efficientnet_{size}": _variant(*FACTS[size][:3], **scale) for size, scale in SCALES.items()}
    | {f"tf_efficientnet_{size}": _variant(*FACTS[size][:2], FACTS[size][3], tensorflow=True, **scale) for size, scale in SCALES.items()},
)
