"""MobileNetV1: depthwise separable convolutions all the way.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import DepthwiseSeparableConv, activation
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class MobileNetV1Config(Config):
    """A MobileNetV1. It has no residual branches: `drop_path` does nothing.

    Attributes:
        channels, repeats: of each stage; the first block of all stages but the first halves the resolution.
        stem: channels of the first convolution.
        activation: "relu6" as in the released code, "relu" as in the paper.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    repeats: tuple[int, ...] = (1, 2, 2, 6, 2)
    stem: int = 32
    activation: str = "relu6"


class MobileNetV1(ConvNet):
    classifiers = ("classifier",)

    def __init__(self, config: MobileNetV1Config):
        super().__init__(config)
        if len(config.channels) != len(config.repeats):
            check.fail("MobileNetV1Config", "repeats", f"have one number for each of {len(config.channels)} stages", config.repeats)
        self.conv_stem = nn.Conv2d(config.in_channels, config.stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem)
        self.act = activation(config.activation)
        dim = config.stem
        self.blocks = nn.ModuleList()
        for stage, (out, repeats) in enumerate(zip(config.channels, config.repeats, strict=True)):
            blocks = nn.Sequential()
            for index in range(repeats):
                blocks.append(DepthwiseSeparableConv(dim, out, 2 if stage and not index else 1, config.activation))
                dim = out
            self.blocks.append(blocks)
        self.classifier = self.new_classifier(dim)
        self.initialise(per_group=True)

    def initialise_classifier(self, head: nn.Linear) -> None:
        bound = head.out_features**-0.5
        nn.init.uniform_(head.weight, -bound, bound)
        nn.init.zeros_(head.bias)

    @property
    def _stages(self) -> nn.ModuleList:
        return self.blocks

    def _stem(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv_stem(x)))

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(channels, 2 ** (stage + 1)) for stage, channels in enumerate(self.config.channels)]

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"blocks.{stage}.{index}",) for stage, repeats in enumerate(self.config.repeats) for index in range(repeats)]
        return [("conv_stem", "bn1"), *blocks, ("classifier",)]


def _variant(parameters: int, gmacs: float | None = None, top1: float | None = None, source: str = "arXiv:1704.04861", **fields: object) -> Variant:
    return Variant(MobileNetV1Config(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source))


register(
    MobileNetV1,
    {
        "mobilenetv1_nano": _variant(70_200, source="for tests and demonstrations", img_size=32, stem=8, channels=(16, 32, 64), repeats=(1, 2, 1)),
        "mobilenetv1_100": _variant(4_231_976, 0.58, 75.388),
    },
)
