"""DenseNets for 32-pixel images: each layer sees the outputs of all before it, and adds a few channels.

Huang et al., "Densely Connected Convolutional Networks", 2016.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class DenseNetConfig(Config):
    """A DenseNet of three dense blocks. It has no residual branches: `drop_path` does nothing.

    Attributes:
        depth: layers, 3 n + 4 for n a block, of which a bottleneck counts for two.
        growth: channels that each adds.
        bottleneck: whether a 1x1 convolution to 4 `growth` channels comes before each 3x3 (the B of DenseNet-BC).
        compression: share of the channels that a transition keeps (its C is 0.5).
    """

    num_classes: int = 10
    img_size: int | tuple[int, int] = 32
    depth: int = 100
    growth: int = 12
    bottleneck: bool = True
    compression: float = 0.5

    @property
    def layers(self) -> int:
        """Of each dense block."""
        return (self.depth - 4) // (6 if self.bottleneck else 3)


class DenseLayer(nn.Module):
    """Appends `growth` channels, computed from all."""

    def __init__(self, dim: int, growth: int, bottleneck: bool):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(dim)
        if bottleneck:
            self.conv1 = nn.Conv2d(dim, 4 * growth, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(4 * growth)
            self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(dim, growth, 3, padding=1, bias=False)
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        if self.bottleneck:
            y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat((x, y), 1)


class Transition(nn.Module):
    """Fewer channels and half the resolution."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(ConvNet):
    def __init__(self, config: DenseNetConfig):
        super().__init__(config)
        unit = 6 if config.bottleneck else 3
        if config.layers < 1 or (config.depth - 4) % unit:
            check.fail("DenseNetConfig", "depth", f"be {unit} n + 4 for n >= 1 layers a block", config.depth, f"try {unit * max(config.layers, 1) + 4}")
        if any(edge < 4 for edge in config.size):
            check.fail("DenseNetConfig", "img_size", "be at least 4 pixels, which two transitions halve", config.size)
        dim = 2 * config.growth
        self.conv1 = nn.Conv2d(config.in_channels, dim, 3, padding=1, bias=False)
        self.block_channels = []
        for block in range(3):
            layers = nn.Sequential()
            for _ in range(config.layers):
                layers.append(DenseLayer(dim, config.growth, config.bottleneck))
                dim += config.growth
            self.add_module(f"dense{block + 1}", layers)
            self.block_channels.append(dim)
            if block < 2:
                kept = int(dim * config.compression)
                self.add_module(f"trans{block + 1}", Transition(dim, kept))
                dim = kept
        self.bn1 = nn.BatchNorm2d(dim)
        self.fc = self.new_classifier(dim)
        self.initialise()

    @property
    def blocks(self) -> list[nn.Sequential]:
        return [self.dense1, self.dense2, self.dense3]

    def _features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self._maps(x)[-1]))

    def _maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self.conv1(x), []
        for block, transition in zip(self.blocks, (self.trans1, self.trans2, None), strict=True):
            for layer in block:
                x = self.run(layer, x)
            maps.append(x)
            if transition is not None:
                x = transition(x)
        return maps

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(channels, 2**block) for block, channels in enumerate(self.block_channels)]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.bn1 = nn.Identity()

    def group_prefixes(self) -> list[tuple[str, ...]]:
        groups: list[tuple[str, ...]] = [("conv1",)]
        for block in range(1, 4):
            groups += [(f"dense{block}.{index}",) for index in range(self.config.layers)]
            groups += [(f"trans{block}",)] if block < 3 else []
        return [*groups, ("bn1", "fc")]


def _variant(parameters: int, gmacs: float | None = None, source: str = "arXiv:1608.06993", **fields: object) -> Variant:
    return Variant(DenseNetConfig(**fields), Info(parameters=parameters, gmacs=gmacs, source=source, classes=10))


register(
    DenseNet,
    {
        "densenet_nano": _variant(44_410, source="for tests and demonstrations", depth=16, growth=12),
        "densenet_bc_100_12": _variant(769_162, 0.288, depth=100),
        # what the AugMix code builds
        "densenet_40_12": _variant(1_059_298, 0.283, depth=40, bottleneck=False, compression=1.0),
    },
)
