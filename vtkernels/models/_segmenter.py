"""Semantic segmentation: a class for each pixel, from the maps of any model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers.pyramid import ConvNormAct, PyramidPooling, TopDown, resized, side_by_side
from vtkernels.models._base import FeatureMaps, Model
from vtkernels.models._dense import Dense


class FcnHead(nn.Module):
    """Convolutions on one map, then a class for each of its cells.

    Args:
        in_channels: of all maps, of which it reads one.
        channels: of the convolutions.
        level: which one; counted from the end where negative.
        depth: how many convolutions.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 256, *, level: int = -1, depth: int = 1, dropout: float = 0.1):
        super().__init__()
        self.levels = [range(len(in_channels))[level]]
        self.convs = nn.Sequential(*(ConvNormAct(in_channels[level] if place == 0 else channels, channels) for place in range(depth)))
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.convs(maps[self.levels[0]]))


class UPerHead(nn.Module):
    """UPerNet (arXiv:1807.10221): pyramid pooling of the last map, a feature pyramid down to the first, and all levels side by side."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 512, *, regions: Sequence[int] = (1, 2, 3, 6), dropout: float = 0.1):
        super().__init__()
        self.levels = list(range(len(in_channels)))
        self.pooling = PyramidPooling(in_channels[-1], channels, regions)
        self.pyramid = TopDown(in_channels[:-1], channels)
        self.merge = ConvNormAct(len(in_channels) * channels, channels)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = self.pyramid(maps[:-1], top=self.pooling(maps[-1]))
        return self.classifier(self.merge(side_by_side(levels)))


HEADS = {"fcn": FcnHead, "upernet": UPerHead}


class Segmenter(Dense):
    """Images [B, C, H, W] -> logits [B, K, H, W].

        segmenter = Segmenter(vt.create_model("swin_tiny_patch4_window7_224", features_only=True), num_classes=150, frozen=True)

    Args:
        backbone, frozen: see `Dense`.
        num_classes: K, the ground included where it is a class.
        head: "upernet" or "fcn".
        channels: width of the head.
        auxiliary: a second head, a small FCN on the last map but one, which `forward_both` runs; training only needs it.
        **options: of the head.
    """

    def __init__(
        self,
        backbone: FeatureMaps | Model,
        num_classes: int,
        *,
        head: str = "upernet",
        channels: int = 512,
        auxiliary: bool = False,
        frozen: bool = False,
        **options: Any,
    ):
        super().__init__(backbone, frozen)
        if head not in HEADS:
            check.fail("Segmenter", "head", f"be one of {', '.join(HEADS)}", repr(head))
        if num_classes < 2:
            check.fail("Segmenter", "num_classes", "be at least 2", num_classes, "the ground is a class, too")
        widths = self.backbone.channels
        self.num_classes = num_classes
        self.head = HEADS[head](widths, num_classes, channels, **options)
        self.auxiliary = FcnHead(widths, num_classes, max(channels // 2, 1), level=max(len(widths) - 2, 0)) if auxiliary else None
        self.use_maps([*self.head.levels, *(self.auxiliary.levels if auxiliary else ())])

    def forward(self, images: Tensor) -> Tensor:
        return resized(self.head(self.maps(images)), images.shape[-2:])

    def forward_both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the head, and of the auxiliary one."""
        maps = self.maps(images)
        logits = [resized(head(maps), images.shape[-2:]) if head is not None else None for head in (self.head, self.auxiliary)]
        return logits[0], logits[1]

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The class of each pixel, int64 [B, H, W]."""
        return self(images).argmax(dim=1)
