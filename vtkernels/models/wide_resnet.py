"""Wide ResNets for 32-pixel images: few layers of many channels, normalised before each convolution.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016.
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


@dataclass(frozen=True, kw_only=True)
class WideResNetConfig(Config):
    """A wide ResNet.

    Attributes:
        depth: layers, 6 n + 4 for n blocks in each of the three groups.
        widen: factor on the channels of the groups, 16, 32 and 64.
        dropout: rate between the two convolutions of a block.
    """

    num_classes: int = 10
    img_size: int | tuple[int, int] = 32
    depth: int = 40
    widen: int = 2
    dropout: float = 0.0


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU. Where channels change, the shortcut too starts from what is normalised."""

    def __init__(self, dim: int, out: int, stride: int, dropout: float, drop_path: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.conv_shortcut = None if dim == out else nn.Conv2d(dim, out, 1, stride, bias=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(y)
        y = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(y)))))
        return shortcut + self.drop_path(y)


class WideResNet(ConvNet):
    def __init__(self, config: WideResNetConfig):
        super().__init__(config)
        blocks, rest = divmod(config.depth - 4, 6)
        if rest or blocks < 1:
            check.fail("WideResNetConfig", "depth", "be 6 n + 4 for n >= 1 blocks a group", config.depth, "try 16, 28 or 40")
        self.conv1 = nn.Conv2d(config.in_channels, 16, 3, 1, 1, bias=False)
        rates = iter(linear_rates(config.drop_path, 3 * blocks))
        dim = 16
        for group, out in enumerate(self.widths):
            layers = nn.Sequential()
            for index in range(blocks):
                layers.append(PreActBlock(dim, out, 2 if group and not index else 1, config.dropout, next(rates)))
                dim = out
            self.add_module(f"block{group + 1}", nn.ModuleDict({"layer": layers}))
        self.bn1 = nn.BatchNorm2d(dim)
        self.fc = self.new_classifier(dim)
        self.initialise()

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(width * self.config.widen for width in WIDTHS)

    @property
    def _stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"block{group + 1}.layer") for group in range(3)]

    def _features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self._maps(x)[-1]))

    def _stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(width, 2**group) for group, width in enumerate(self.widths)]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.bn1 = nn.Identity()

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"block{group + 1}.layer.{index}",) for group, layers in enumerate(self._stages) for index in range(len(layers))]
        return [("conv1",), *blocks, ("bn1", "fc")]


def _variant(parameters: int, gmacs: float | None = None, source: str = "arXiv:1605.07146", **fields: object) -> Variant:
    return Variant(WideResNetConfig(**fields), Info(parameters=parameters, gmacs=gmacs, source=source, classes=10))


register(
    WideResNet,
    {
        "wrn_nano": _variant(175_066, source="for tests and demonstrations", depth=16, widen=1, dropout=0.1),
        "wrn_16_4": _variant(2_748_890, depth=16, widen=4),
        "wrn_16_8": _variant(10_961_370, depth=16, widen=8),
        "wrn_28_10": _variant(36_479_194, 5.24, depth=28, widen=10),
        "wrn_40_2": _variant(2_243_546, 0.328, depth=40, widen=2),
        "wrn_40_4": _variant(8_949_210, depth=40, widen=4),
    },
)
