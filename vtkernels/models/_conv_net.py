"""What the convolutional families have in common."""

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from vtkernels.layers import WeightNormConv2d
from vtkernels.models._base import Model


class ConvNet(Model):
    """A trunk of maps of growing depth, the mean of the last one, and a linear classifier.

    A family writes `_stem` and `_stages`, or `_maps` where these do not describe it, and overrides `_features` where something
    stands between the last map and the mean.
    """

    classifiers: ClassVar[tuple[str, ...]] = ("fc",)

    def initialise(self, per_group: bool = False) -> None:
        """Convolutions from normal distributions of variance 2 / (k k C_out), C_out of one group with `per_group`."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // (module.groups if per_group else 1)
                weight = module.weight_v if isinstance(module, WeightNormConv2d) else module.weight
                nn.init.normal_(weight, std=(2 / fan_out) ** 0.5)
                if isinstance(module, WeightNormConv2d):
                    module.set_filters(weight.detach())
        if self.num_classes:
            self.initialise_classifier(self.get_submodule(self.classifiers[0]))

    def initialise_classifier(self, head: nn.Linear) -> None:
        head.reset_parameters()
        nn.init.zeros_(head.bias)

    def _stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def _stages(self) -> Iterable[nn.Sequential]:
        raise NotImplementedError

    def _maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self._stem(x), []
        for stage in self._stages:
            for block in stage:
                x = self.run(block, x)
            maps.append(x)
        return maps

    def _features(self, x: Tensor) -> Tensor:
        return self._maps(x)[-1]

    def _logits(self, features: Tensor) -> Tensor:
        return self.get_submodule(self.classifiers[0])(features.mean((2, 3)))
