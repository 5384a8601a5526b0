"""ResNets: residual blocks of convolutions, and their wide, grouped, squeeze-and-excitation and normalisation variants.

He et al., "Deep Residual Learning for Image Recognition", 2015; Hu et al., "Squeeze-and-Excitation Networks", 2017.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import DropPath, GroupNorm, MeanOnlyBatchNorm2d, SqueezeExcite, StdConv2d, WeightNormConv2d, linear_rates
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register

NORMS = ("batch", "group", "mean")
CONVS = {"plain": nn.Conv2d, "standardised": partial(StdConv2d, std_eps=1e-10), "normalised": WeightNormConv2d}
# how the stem pools
STEMS = {"imagenet": partial(nn.MaxPool2d, 3, 2, 1), "caffe": partial(nn.MaxPool2d, 3, 2, ceil_mode=True), "cifar": nn.Identity}


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Config):
    """A ResNet.

    Attributes:
        depths: blocks of each stage.
        bottleneck: whether a block is 1x1, 3x3, 1x1 with four times as many channels outside, or two 3x3.
        width: channels of the stem; stage s works with `width` 2^s.
        inner_ratio: channels of a bottleneck's 3x3 over the stage's, before it is split into `cardinality` groups.
        se_reduction: the factor by which squeeze-and-excitation narrows, to a multiple of 8 channels; 0 for none.
        norm: "batch", "group" of `groups` groups, or "mean": mean-only batch normalisation.
        conv: "plain", "standardised" or weight-"normalised" filters.
        stem: "imagenet", "cifar" (3x3, no pooling) or "caffe", which pools without padding on the left and strides in the first 1x1.
        zero_init_last: whether each block starts as its shortcut: the last factor of its branch is zero.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    inner_ratio: float = 1.0
    cardinality: int = 1
    se_reduction: int = 0
    norm: str = "batch"
    groups: int = 32
    conv: str = "plain"
    stem: str = "imagenet"
    zero_init_last: bool = True

    @property
    def expansion(self) -> int:
        return 4 if self.bottleneck else 1

    def stage_width(self, stage: int) -> int:
        return self.width * 2**stage

    def make_conv(self, dim: int, out: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        return CONVS[self.conv](dim, out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)

    def make_norm(self, channels: int) -> nn.Module:
        if self.norm == "group":
            return GroupNorm(channels, self.groups)
        return nn.BatchNorm2d(channels) if self.norm == "batch" else MeanOnlyBatchNorm2d(channels)

    def make_se(self, channels: int) -> nn.Module:
        if not self.se_reduction:
            return nn.Identity()
        # the nearest multiple of 8, but never less by more than a tenth
        wanted = channels / self.se_reduction
        hidden = max(8, int(wanted + 4) // 8 * 8)
        return SqueezeExcite(channels, hidden + 8 * (hidden < 0.9 * wanted))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the shortcut."""

    def __init__(self, config: ResNetConfig, dim: int, stage: int, stride: int, drop_path: float):
        super().__init__()
        out = config.stage_width(stage)
        self.conv1 = config.make_conv(dim, out, 3, stride)
        self.bn1 = config.make_norm(out)
        self.conv2 = config.make_conv(out, out, 3)
        self.bn2 = config.make_norm(out)
        self.se = config.make_se(out)
        self.downsample = _shortcut(config, dim, out, stride)
        self.drop_path = DropPath(drop_path)

    @property
    def last(self) -> tuple[nn.Module, nn.Module]:
        return self.conv2, self.bn2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        return F.relu(self.downsample(x) + self.drop_path(y))


class Bottleneck(nn.Module):
    """A 3x3 convolution of few channels between two 1x1, beside the shortcut."""

    def __init__(self, config: ResNetConfig, dim: int, stage: int, stride: int, drop_path: float):
        super().__init__()
        out = config.stage_width(stage) * config.expansion
        inner = int(config.stage_width(stage) * config.inner_ratio)
        first, second = (stride, 1) if config.stem == "caffe" else (1, stride)
        self.conv1 = config.make_conv(dim, inner, 1, first)
        self.bn1 = config.make_norm(inner)
        self.conv2 = config.make_conv(inner, inner, 3, second, config.cardinality)
        self.bn2 = config.make_norm(inner)
        self.conv3 = config.make_conv(inner, out, 1)
        self.bn3 = config.make_norm(out)
        self.se = config.make_se(out)
        self.downsample = _shortcut(config, dim, out, stride)
        self.drop_path = DropPath(drop_path)

    @property
    def last(self) -> tuple[nn.Module, nn.Module]:
        return self.conv3, self.bn3

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.se(self.bn3(self.conv3(y)))
        return F.relu(self.downsample(x) + self.drop_path(y))


def _shortcut(config: ResNetConfig, dim: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and dim == out:
        return nn.Identity()
    return nn.Sequential(config.make_conv(dim, out, 1, stride), config.make_norm(out))


class ResNet(ConvNet):
    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        _check(config)
        small = config.stem == "cifar"
        self.conv1 = config.make_conv(config.in_channels, config.width, 3 if small else 7, 1 if small else 2)
        self.bn1 = config.make_norm(config.width)
        self.maxpool = STEMS[config.stem]()
        block = Bottleneck if config.bottleneck else BasicBlock
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        dim = config.width
        for stage, depth in enumerate(config.depths):
            blocks = []
            for index in range(depth):
                blocks.append(block(config, dim, stage, 2 if stage and not index else 1, next(rates)))
                dim = config.stage_width(stage) * config.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = self.new_classifier(dim)
        self.initialise()

    @property
    def _stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{stage + 1}") for stage in range(len(self.config.depths))]

    def initialise(self) -> None:
        super().initialise()
        if self.config.zero_init_last:
            for block in (block for stage in self._stages for block in stage):
                conv, norm = block.last
                nn.init.zeros_(conv.weight_g if self.config.norm == "mean" else norm.weight)

    def initialise_classifier(self, head: nn.Linear) -> None:
        head.reset_parameters()

    def _stem(self, x: Tensor) -> Tensor:
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))

    @property
    def maps_info(self) -> list[MapInfo]:
        config, first = self.config, 1 if self.config.stem == "cifar" else 4
        return [MapInfo(config.stage_width(stage) * config.expansion, first * 2**stage) for stage in range(len(config.depths))]

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("weight_g")}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"layer{stage + 1}.{index}",) for stage, depth in enumerate(self.config.depths) for index in range(depth)]
        return [("conv1", "bn1"), *blocks, ("fc",)]

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The original SE-ResNets' names, and those of torch's weight normalisation."""
        renames = (
            ("layer0.conv1.", "conv1."),
            ("layer0.bn1.", "bn1."),
            (".se_module.", ".se."),
            ("last_linear.", "fc."),
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        )
        converted = {}
        for name, value in state.items():
            for old, new in renames:
                name = name.replace(old, new)
            converted[name] = value
        return converted


def _check(config: ResNetConfig) -> None:
    for name, known in (("norm", NORMS), ("conv", CONVS), ("stem", STEMS)):
        if getattr(config, name) not in known:
            check.fail("ResNetConfig", name, f"be one of {', '.join(known)}", repr(getattr(config, name)))
    if config.norm == "mean" and config.conv != "normalised":
        check.fail("ResNetConfig", "conv", "be 'normalised' where norm='mean', which leaves the scale to the filters", repr(config.conv))
    inner = int(config.width * config.inner_ratio)
    if config.bottleneck and inner % config.cardinality:
        check.fail("ResNetConfig", "inner_ratio", f"give a multiple of cardinality={config.cardinality} channels", inner, "change one of them")


def _variant(
    parameters: int, gmacs: float | None = None, top1: float | None = None, source: str = "arXiv:1512.03385", classes: int = 1000, **fields: object
) -> Variant:
    return Variant(ResNetConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


R18 = {"depths": (2, 2, 2, 2)}
R34 = {"depths": (3, 4, 6, 3)}
R50 = {"depths": (3, 4, 6, 3), "bottleneck": True}
R101 = {"depths": (3, 4, 23, 3), "bottleneck": True}
R152 = {"depths": (3, 8, 36, 3), "bottleneck": True}
DOUBLED = {"width": 128, "source": "arXiv:2010.01412"}
WIDE = {"inner_ratio": 2.0, "source": "arXiv:1605.07146"}
SE = {"se_reduction": 16, "source": "arXiv:1709.01507"}
LEGACY_SE = {"stem": "caffe", **SE}
SMALL = {"stem": "cifar", "img_size": 32, "classes": 10}
WEIGHT_NORM = {"norm": "mean", "conv": "normalised", "source": "arXiv:1602.07868"}
GROUP_NORM = {"norm": "group", "source": "arXiv:1803.08494"}
NANO = {"depths": (1, 2, 1), "width": 8, "img_size": 32, "groups": 4, "source": "for tests and demonstrations"}

register(
    ResNet,
    {
        "resnet_nano": _variant(58_256, **NANO),
        "resnet_nano_wn": _variant(58_256, **(WEIGHT_NORM | NANO)),
        "resnet_nano_se_gn_ws": _variant(196_112, **(GROUP_NORM | SE | NANO), bottleneck=True, conv="standardised", inner_ratio=2.0, cardinality=2),
        "resnet18": _variant(11_689_512, 1.82, 69.752, **R18),
        "resnet34": _variant(21_797_672, 3.67, 73.298, **R34),
        "resnet50": _variant(25_557_032, 4.11, 76.156, **R50),
        "resnet101": _variant(44_549_160, 7.83, 77.404, **R101),
        "resnet152": _variant(60_192_808, 11.56, 78.330, **R152),
        "resnet50x2": _variant(98_004_072, 16.12, **R50, **DOUBLED),
        "resnet101x2": _variant(173_868_136, 30.97, **R101, **DOUBLED),
        "resnet152x2": _variant(236_350_568, None, **R152, **DOUBLED),
        "wide_resnet50_2": _variant(68_883_240, 11.43, 78.486, **R50, **WIDE),
        "wide_resnet101_2": _variant(126_886_696, 22.80, 78.862, **R101, **WIDE),
        "resnext50_32x4d": _variant(25_028_904, 4.26, None, "arXiv:1611.05431", **R50, inner_ratio=2.0, cardinality=32),
        "resnet50_gn": _variant(25_557_032, **R50, **GROUP_NORM),
        "resnet50_gn_ws": _variant(25_557_032, None, None, "arXiv:1903.10520", **R50, norm="group", conv="standardised"),
        "resnet50_wn": _variant(25_557_032, **R50, **WEIGHT_NORM),
        "seresnet18": _variant(11_779_624, **R18, **SE),
        "seresnet34": _variant(21_960_416, **R34, **SE),
        "seresnet50": _variant(28_088_024, 4.11, 80.012, **R50, **SE),
        "seresnet101": _variant(49_326_872, **R101, **SE),
        "seresnet152": _variant(66_821_848, **R152, **SE),
        "legacy_seresnet50": _variant(28_088_024, 3.87, 77.63, **R50, **LEGACY_SE),
        "legacy_seresnet101": _variant(49_326_872, None, 78.25, **R101, **LEGACY_SE),
        "legacy_seresnet152": _variant(66_821_848, None, 78.66, **R152, **LEGACY_SE),
        "resnet18_cifar": _variant(11_173_962, 0.555, **R18, **SMALL),
        "resnet34_cifar": _variant(21_282_122, 1.159, **R34, **SMALL),
        "resnet50_cifar": _variant(23_520_842, 1.298, **R50, **SMALL),
    },
)
