"""Detection in one stage and without anchors: each cell of a pyramid says what it is in, and how far the sides of that are.

FCOS (arXiv:1904.01355), with the refinements of arXiv:2006.09214: centerness beside the box, and the score as the root of both.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers.boxes import clip_boxes, non_maximum_suppression
from vtkernels.layers.pyramid import ConvNormAct, TopDown
from vtkernels.losses import focal_prior_bias
from vtkernels.models._base import FeatureMaps, Model
from vtkernels.models._dense import Dense


class Cells(NamedTuple):
    """What a detector says of all P cells of all levels, from fine to coarse.

    Attributes:
        logits: [B, P, K] of the classes, each a yes or no of its own.
        distances: [B, P, 4] from the cell's centre to the left, top, right and bottom side, in pixels, above 0.
        centerness: [B, P] logits of how central the cell is in its object.
        centers: [P, 2] x and y in pixels.
        strides: [P] pixels from a cell to the next.
    """

    logits: Tensor
    distances: Tensor
    centerness: Tensor
    centers: Tensor
    strides: Tensor


class Detector(Dense):
    """Images [B, C, H, W] -> `Cells` in training; `predict` makes boxes of them.

    Args:
        backbone, frozen: see `Dense`. Of maps that have the same cells, the deepest is taken.
        channels: width of the pyramid and the head.
        depth: convolutions before each answer.
        finest: maps with cells of fewer pixels are left out.
        extra: coarser levels beyond those of the trunk, for large objects.
    """

    def __init__(
        self,
        backbone: FeatureMaps | Model,
        num_classes: int,
        *,
        channels: int = 256,
        depth: int = 4,
        finest: int = 8,
        extra: int = 2,
        frozen: bool = False,
    ):
        super().__init__(backbone, frozen)
        if num_classes < 1:
            check.fail("Detector", "num_classes", "be at least 1", num_classes, "the background is none")
        self.num_classes = num_classes
        deepest = {reduction: level for level, reduction in enumerate(self.backbone.reductions) if reduction >= finest}
        if not deepest:
            check.fail("Detector", "finest", f"be at most the trunk's coarsest cells, {max(self.backbone.reductions)} pixels", finest)
        self.levels = [deepest[reduction] for reduction in sorted(deepest)]
        self.use_maps(self.levels)
        self.strides = [self.backbone.reductions[level] for level in self.levels]
        self.strides += [self.strides[-1] << place for place in range(1, extra + 1)]
        self.pyramid = TopDown([self.backbone.channels[level] for level in self.levels], channels)
        self.coarser = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(extra))
        self.class_tower = nn.Sequential(*(ConvNormAct(channels, channels) for _ in range(depth)))
        self.box_tower = nn.Sequential(*(ConvNormAct(channels, channels) for _ in range(depth)))
        self.classifier = nn.Conv2d(channels, num_classes, 3, padding=1)
        # four distances, and the centerness that is judged by the same features
        self.regressor = nn.Conv2d(channels, 5, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for layer in (self.classifier, self.regressor):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classifier.bias, focal_prior_bias(0.01))

    def forward(self, images: Tensor) -> Cells:
        maps = self.maps(images)
        levels = self.pyramid([maps[level] for level in self.levels])
        for conv in self.coarser:
            levels.append(conv(levels[-1].relu()))
        parts = [self._level(x, scale, stride) for x, scale, stride in zip(levels, self.scales, self.strides, strict=True)]
        logits, distances, centerness, centers, strides = zip(*parts, strict=True)
        return Cells(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(centerness, 1), torch.cat(centers), torch.cat(strides))

    def _level(self, x: Tensor, scale: Tensor, stride: int) -> Cells:
        logits = self.classifier(self.class_tower(x)).flatten(2).transpose(1, 2)
        # boxes are worth float32, in which distances beyond 256 pixels have fractions
        sides = self.regressor(self.box_tower(x)).flatten(2).transpose(1, 2).float()
        # from e^8 cells on, a box is larger than any image
        distances = (scale * sides[..., :4]).clamp(max=8.0).exp() * stride
        rows, columns = (torch.arange(size, device=x.device, dtype=torch.float32) for size in x.shape[-2:])
        y, x = torch.meshgrid((rows + 0.5) * stride, (columns + 0.5) * stride, indexing="ij")
        centers = torch.stack([x.flatten(), y.flatten()], dim=1)
        return Cells(logits, distances, sides[..., 4], centers, torch.full_like(centers[:, 0], stride))

    @torch.no_grad()
    def predict(self, images: Tensor, **options: float) -> list[dict[str, Tensor]]:
        """For each image "boxes" [n, 4], "scores" and "labels" [n], best first; `options` are those of `boxes_of`."""
        return boxes_of(self(images), tuple(images.shape[-2:]), **options)


@torch.no_grad()
def boxes_of(
    cells: Cells, size: tuple[int, int], *, least_score: float = 0.05, overlap: float = 0.6, candidates: int = 1000, most: int = 100
) -> list[dict[str, Tensor]]:
    """What the cells found in each image.

    Args:
        size: (rows, columns) of the images, at whose borders boxes are cut.
        least_score: probability times centerness, as its root, that an object needs.
        overlap: of two boxes of a class with a larger intersection over union, the better one stays.
        candidates: the best of all answers, of which boxes are made.
        most: boxes in an image.
    """
    found = []
    scores = (cells.logits.float().sigmoid() * cells.centerness.float().sigmoid()[..., None]).sqrt()
    starts, ends = cells.centers - cells.distances[..., :2], cells.centers + cells.distances[..., 2:]
    boxes = clip_boxes(torch.cat([starts, ends], dim=2), size)
    for own_scores, own_boxes in zip(scores, boxes, strict=True):
        best, places = own_scores.flatten().topk(min(candidates, own_scores.numel()))
        places, best = places[best > least_score], best[best > least_score]
        labels, own_boxes = places % own_scores.shape[1], own_boxes[places // own_scores.shape[1]]
        kept = non_maximum_suppression(own_boxes, best, labels, overlap)[:most]
        found.append({"boxes": own_boxes[kept], "scores": best[kept], "labels": labels[kept]})
    return found
