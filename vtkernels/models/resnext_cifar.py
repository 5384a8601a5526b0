"""ResNeXt for 32-pixel images: blocks whose middle convolution works on groups of channels alone.

Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", 2016.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import DropPath, linear_rates
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class CifarResNeXtConfig(Config):
    """A ResNeXt of three stages.

    Attributes:
        depth: layers, 9 n + 2 for n blocks in each stage.
        cardinality: groups of the middle convolution.
        base_width: channels of a group in the first stage, for a `width` of 64.
        width: channels of the stem; a stage puts out 4 `width`, then twice as many each time.
    """

    num_classes: int = 10
    img_size: int | tuple[int, int] = 32
    depth: int = 29
    cardinality: int = 32
    base_width: int = 4
    width: int = 64

    def stage_channels(self, stage: int) -> int:
        return 4 * self.width * 2**stage

    def grouped_channels(self, stage: int) -> int:
        return self.width * 2**stage * self.base_width // 64 * self.cardinality


class GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution beside the shortcut."""

    def __init__(self, config: CifarResNeXtConfig, dim: int, stage: int, stride: int, drop_path: float):
        super().__init__()
        inner, out = config.grouped_channels(stage), config.stage_channels(stage)
        self.conv_reduce = nn.Conv2d(dim, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, 1, groups=config.cardinality, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, out, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out)
        changes = stride != 1 or dim != out
        self.downsample = nn.Sequential(nn.Conv2d(dim, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if changes else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn_reduce(self.conv_reduce(x)))
        y = F.relu(self.bn(self.conv_conv(y)))
        y = self.bn_expand(self.conv_expand(y))
        return F.relu(self.downsample(x) + self.drop_path(y))


class CifarResNeXt(ConvNet):
    classifiers = ("classifier",)

    def __init__(self, config: CifarResNeXtConfig):
        super().__init__(config)
        blocks, rest = divmod(config.depth - 2, 9)
        if rest or blocks < 1:
            check.fail("CifarResNeXtConfig", "depth", "be 9 n + 2 for n >= 1 blocks a stage", config.depth, "try 29")
        if not config.grouped_channels(0):
            check.fail("CifarResNeXtConfig", "base_width", f"be at least 64 / width = {64 / config.width:g}", config.base_width)
        self.conv_1_3x3 = nn.Conv2d(config.in_channels, config.width, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(config.width)
        rates = iter(linear_rates(config.drop_path, 3 * blocks))
        dim = config.width
        for stage in range(3):
            layers = nn.Sequential()
            for index in range(blocks):
                layers.append(GroupedBottleneck(config, dim, stage, 2 if stage and not index else 1, next(rates)))
                dim = config.stage_channels(stage)
            self.add_module(f"stage_{stage + 1}", layers)
        self.classifier = self.new_classifier(dim)
        self.initialise()

    @property
    def _stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"stage_{stage + 1}") for stage in range(3)]

    def initialise_classifier(self, head: nn.Linear) -> None:
        nn.init.kaiming_normal_(head.weight)
        nn.init.zeros_(head.bias)

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_1(self.conv_1_3x3(x)))

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(self.config.stage_channels(stage), 2**stage) for stage in range(3)]

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"stage_{stage + 1}.{index}",) for stage, layers in enumerate(self._stages) for index in range(len(layers))]
        return [("conv_1_3x3", "bn_1"), *blocks, ("classifier",)]


def _variant(parameters: int, gmacs: float | None = None, source: str = "arXiv:1611.05431", **fields: object) -> Variant:
    return Variant(CifarResNeXtConfig(**fields), Info(parameters=parameters, gmacs=gmacs, source=source, classes=10))


register(
    CifarResNeXt,
    {
        "resnext29_nano": _variant(91_354, source="for tests and demonstrations", depth=11, width=16, cardinality=4, base_width=16),
        # what the AugMix code calls "32x4" is 4 groups of 32 channels
        "resnext29_4x32d": _variant(6_807_882, 1.071, "arXiv:1912.02781", cardinality=4, base_width=32),
        "resnext29_32x4d": _variant(4_775_754, 0.774, cardinality=32, base_width=4),
        "resnext29_8x64d": _variant(34_426_698, cardinality=8, base_width=64),
        "resnext29_16x64d": _variant(68_155_210, cardinality=16, base_width=64),
    },
)
