"""AllConvNet: 3x3 convolutions and nothing else, in the form of the AugMix experiments on 32-pixel images.

Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 2014; Hendrycks et al., "AugMix", 2019.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import activation
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class AllConvConfig(Config):
    """An AllConvNet. It has no residual branches: `drop_path` does nothing.

    Attributes:
        widths: channels of the first three layers, and of all later ones.
        dropout: rate after each pooling.
        padded_pointwise: whether the two 1x1 convolutions at the end are padded by a pixel each, as in the AugMix code, where 6 x 6
            pixels become 10 x 10, of which only the first 8 x 8 are averaged. Without it all 6 x 6 are.
    """

    num_classes: int = 10
    img_size: int | tuple[int, int] = 32
    widths: tuple[int, int] = (96, 192)
    dropout: float = 0.5
    padded_pointwise: bool = True
    activation: str = "quick_gelu"


class Activation(nn.Module):
    """An activation by name as a layer."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.function = name, activation(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class AllConvNet(ConvNet):
    classifiers = ("classifier",)

    def __init__(self, config: AllConvConfig):
        super().__init__(config)
        if any(edge < 12 for edge in config.size):
            check.fail("AllConvConfig", "img_size", "be at least 12 pixels, of which two poolings and an unpadded 3x3 leave one", config.size)
        first, width = config.widths
        layers: list[nn.Module] = []

        def conv(dim: int, out: int, kernel_size: int = 3, padding: int = 1) -> None:
            layers.extend((nn.Conv2d(dim, out, kernel_size, padding=padding), nn.BatchNorm2d(out), Activation(config.activation)))

        def pool() -> None:
            layers.extend((nn.MaxPool2d(2), nn.Dropout(config.dropout)))

        for dim in (config.in_channels, first, first):
            conv(dim, first)
        pool()
        for dim in (first, width, width):
            conv(dim, width)
        pool()
        conv(width, width, padding=0)
        for _ in range(2):
            conv(width, width, kernel_size=1, padding=int(config.padded_pointwise))
        self.features = nn.Sequential(*layers)
        self.classifier = self.new_classifier(width)
        self.initialise()

    def _features(self, x: Tensor) -> Tensor:
        for start, end in self._parts:
            x = self.run(self._pass, x, start, end)
        return x

    def _pass(self, x: Tensor, start: int, end: int) -> Tensor:
        for index in range(start, end):
            x = self.features[index](x)
        return x

    @property
    def _parts(self) -> list[tuple[int, int]]:
        """Layers between two poolings, and the rest."""
        pools = [index for index, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        bounds = [0, *pools, len(self.features)]
        return [(start, end) for start, end in zip(bounds, bounds[1:], strict=False) if start < end]

    def _logits(self, features: Tensor) -> Tensor:
        if self.config.padded_pointwise:
            features = features[:, :, :-2, :-2]
        return super()._logits(features)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for start, end in self._parts[:2]:
            x = self.run(self._pass, x, start, end)
            maps.append(x)
        return maps

    @property
    def maps_info(self) -> list[MapInfo]:
        """Before each pooling: what comes later lost a pixel at each edge."""
        return [MapInfo(width, reduction) for width, reduction in zip(self.config.widths, (1, 2), strict=True)]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.features = self.features[: self._parts[1][1]]

    def group_prefixes(self) -> list[tuple[str, ...]]:
        convs = [index for index, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        return [*((f"features.{index}", f"features.{index + 1}") for index in convs), ("classifier",)]


def _variant(parameters: int, gmacs: float | None = None, source: str = "arXiv:1412.6806", classes: int = 10, **fields: object) -> Variant:
    return Variant(AllConvConfig(**fields), Info(parameters=parameters, gmacs=gmacs, source=source, classes=classes))


register(
    AllConvNet,
    {
        "allconv_nano": _variant(40_394, source="for tests and demonstrations", widths=(16, 32), dropout=0.1),
        "allconv": _variant(1_409_674, 0.403),
        "allconv_unpadded": _variant(1_409_674, padded_pointwise=False),
    },
)
