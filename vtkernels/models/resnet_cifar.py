"""The original ResNets for 32-pixel images: three stages of 16, 32 and 64 channels.

He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2. The large ResNets with a stem for small images are in `resnet`.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import DropPath, linear_rates
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register

WIDTHS = (16, 32, 64)
SHORTCUTS = ("pad", "project")


@dataclass(frozen=True, kw_only=True)
class CifarResNetConfig(Config):
    """A ResNet of three stages.

    Attributes:
        depth: layers, 6 n + 2 for n blocks in each stage.
        shortcut: where channels change, every other pixel and new channels of zeros ("pad", the paper's A), or a 1x1
            convolution ("project", its B).
    """

    num_classes: int = 10
    img_size: int | tuple[int, int] = 32
    depth: int = 20
    shortcut: str = "pad"


class PaddedShortcut(nn.Module):
    """Every other pixel, with channels of zeros put before and after."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.channels // 2, self.channels - self.channels // 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the shortcut."""

    def __init__(self, config: CifarResNetConfig, dim: int, out: int, drop_path: float):
        super().__init__()
        stride = out // dim
        self.conv1 = nn.Conv2d(dim, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        if dim == out:
            self.shortcut: nn.Module = nn.Identity()
        elif config.shortcut == "pad":
            self.shortcut = PaddedShortcut(out - dim)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(dim, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(self.shortcut(x) + self.drop_path(y))


class CifarResNet(ConvNet):
    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        blocks, rest = divmod(config.depth - 2, 6)
        if rest or blocks < 1:
            check.fail("CifarResNetConfig", "depth", "be 6 n + 2 for n >= 1 blocks a stage", config.depth, "try 20, 32, 44, 56 or 110")
        if config.shortcut not in SHORTCUTS:
            check.fail("CifarResNetConfig", "shortcut", f"be one of {', '.join(SHORTCUTS)}", repr(config.shortcut))
        self.conv1 = nn.Conv2d(config.in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        rates = iter(linear_rates(config.drop_path, 3 * blocks))
        dim = 16
        for stage, width in enumerate(WIDTHS):
            layers = nn.Sequential()
            for _ in range(blocks):
                layers.append(BasicBlock(config, dim, width, next(rates)))
                dim = width
            self.add_module(f"layer{stage + 1}", layers)
        self.fc = self.new_classifier(dim)
        self.initialise()

    @property
    def _stages(self) -> list[nn.Sequential]:
        return [self.layer1, self.layer2, self.layer3]

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(width, 2**stage) for stage, width in enumerate(WIDTHS)]

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"layer{stage + 1}.{index}",) for stage, layers in enumerate(self._stages) for index in range(len(layers))]
        return [("conv1", "bn1"), *blocks, ("fc",)]


def _variant(parameters: int, source: str = "arXiv:1512.03385", **fields: object) -> Variant:
    return Variant(CifarResNetConfig(**fields), Info(parameters=parameters, source=source, classes=10))


register(
    CifarResNet,
    {
        "resnet8_nano": _variant(75_290, source="for tests and demonstrations", depth=8),
        "resnet20": _variant(269_722, depth=20),
        "resnet32": _variant(464_154, depth=32),
        "resnet44": _variant(658_586, depth=44),
        "resnet56": _variant(853_018, depth=56),
        "resnet110": _variant(1_727_962, depth=110),
    },
)
