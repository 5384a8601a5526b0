"""Objects with their boxes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.evaluation.detection import coco_average_precision
from vtkernels.layers.boxes import box_areas
from vtkernels.losses import giou_loss, sigmoid_focal_loss
from vtkernels.models import Cells, Detector, boxes_of
from vtkernels.train.task import Outcome, Sums, Task, Totals

BACKGROUND, IGNORED = -1, -2
# of each object only cells whose centre is so many cells from its own learn it
RADIUS = 1.5


class DetectionTask(Task):
    """A detector and FCOS's losses: focal loss of the classes, GIoU loss of the boxes, cross-entropy of the centerness.

    Targets are a list of dictionaries, one an image, with "boxes" [n, 4] as x0 y0 x1 y1 in pixels and "labels" [n]. Objects marked in "crowd" or
    "difficult" [n] are not learnt: cells inside them that are in no other object do not count.

    Evaluated are COCO's "map" over its ten thresholds, "ap50", "ap75" and "recall". The sums of losses are divided by the batch's positive cells.
    """

    metrics = ("loss", "map", "ap50", "ap75", "recall")

    def __init__(self, model: Detector, *, gamma: float = 2.0, alpha: float = 0.25):
        super().__init__()
        self.model, self.gamma, self.alpha = model, gamma, alpha

    def forward(self, images: Tensor, targets: Any, epoch: float = 0.0) -> Outcome:
        check_targets(images, targets, self.model.num_classes)
        losses = self.losses(self.model(images), targets)
        return Outcome(sum(losses.values()), logs={name: loss.detach() for name, loss in losses.items()})

    def losses(self, cells: Cells, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        answers = [assign(cells.centers, cells.strides, target) for target in targets]
        labels, distances = torch.stack([own for own, _ in answers]), torch.stack([own for _, own in answers])
        # by their places: each look at a mask would wait for the device
        inside = (labels >= 0).nonzero(as_tuple=True)
        wanted, found = distances[inside], cells.distances[inside]
        centerness = centerness_of(wanted)
        boxes = [torch.cat([-sides[:, :2], sides[:, 2:]], dim=1) for sides in (found, wanted)]
        overlap = giou_loss(*boxes, reduction="none") * centerness
        central = F.binary_cross_entropy_with_logits(cells.centerness[inside].float(), centerness, reduction="sum")
        return {
            "classes": sigmoid_focal_loss(cells.logits.flatten(0, 1), labels.flatten(), gamma=self.gamma, alpha=self.alpha),
            "boxes": overlap.sum() / centerness.sum().clamp(min=1e-6),
            "centerness": central / max(len(wanted), 1),
        }

    def evaluate(self, images: Tensor, targets: Any) -> Sums:
        check_targets(images, targets, self.model.num_classes)
        cells = self.model(images)
        loss = sum(self.losses(cells, targets).values())
        found = boxes_of(cells, tuple(images.shape[-2:]))
        kept = [{name: part.cpu() for name, part in target.items() if name != "masks"} for target in targets]
        answers = [{name: part.cpu() for name, part in own.items()} for own in found]
        return {"loss": (loss * len(images), len(images)), "objects": list(zip(answers, kept, strict=True))}

    def conclude(self, totals: Totals, records: dict[str, list[Any]]) -> dict[str, float]:
        metrics = super().conclude(totals, records)
        if "objects" in records:
            scores = coco_average_precision(*zip(*records["objects"], strict=True), self.model.num_classes)
            metrics |= {"map": scores.mean, "ap50": scores.at(0.5), "ap75": scores.at(0.75), "recall": scores.mean_recall}
        return metrics


@torch.no_grad()
def assign(centers: Tensor, strides: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What each of P cells is to answer: a class [P], BACKGROUND or IGNORED, and distances [P, 4] to the sides of its object.

    A cell learns an object if it lies near its centre, and if the object's size suits the cell's level: the farthest side is at most 8 cells
    away, and more than that on the next finer level. Of several objects it learns the smallest.
    """
    boxes, labels = target["boxes"].to(centers), target["labels"].to(centers.device)
    spared = _spared(target).to(centers.device)
    if not len(boxes):
        return torch.full((len(centers),), BACKGROUND, device=centers.device), centers.new_zeros(len(centers), 4)
    sides = torch.cat([centers[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - centers[:, None]], dim=2)  # [P, n, 4]
    inside = sides.amin(dim=2) > 0
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (centers[:, None] - middle[None]).abs().amax(dim=2) < RADIUS * strides[:, None]
    # of the next finer level, whichever there are
    ordered = strides.sort().values
    place = torch.searchsorted(ordered, strides)
    least = torch.where(place > 0, 8 * ordered[(place - 1).clamp(min=0)], 0.0)
    most = torch.where(strides == ordered[-1], torch.inf, 8 * strides)
    farthest = sides.amax(dim=2)
    suits = (farthest > least[:, None]) & (farthest <= most[:, None])
    areas = box_areas(boxes)[None].where(inside & near & suits & ~spared, torch.inf)
    smallest, owner = areas.min(dim=1)
    answer = torch.where(smallest < torch.inf, labels[owner], torch.where((inside & spared).any(dim=1), IGNORED, BACKGROUND))
    return answer, sides[torch.arange(len(centers), device=centers.device), owner]


def centerness_of(distances: Tensor) -> Tensor:
    """[n]: 1 in the middle of a box, 0 at its sides; of distances [n, 4] to these."""
    across, down = distances[:, 0::2], distances[:, 1::2]
    return (across.amin(dim=1) / across.amax(dim=1) * down.amin(dim=1) / down.amax(dim=1)).sqrt()


def _spared(target: dict[str, Tensor]) -> Tensor:
    marks = [target[name].bool() for name in ("crowd", "difficult") if name in target]
    return torch.stack(marks).any(dim=0) if marks else torch.zeros_like(target["labels"], dtype=torch.bool)


def check_targets(images: Tensor, targets: Any, num_classes: int) -> None:
    """An error that names the image, rather than a loss that is odd."""
    told, rows, columns = "DetectionTask", *images.shape[-2:]
    if (
        not isinstance(targets, list)
        or len(targets) != len(images)
        or not all(isinstance(target, dict) and {"boxes", "labels"} <= target.keys() for target in targets)
    ):
        got = f"{len(targets)} of them" if isinstance(targets, list) else type(targets).__name__
        check.fail(
            told, "targets", f"be a list of {len(images)} dictionaries with boxes and labels", got, 'create_dataset("shapes", task="detection") gives some'
        )
    for number, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape != (len(labels), 4):
            check.fail(told, f"boxes of image {number}", f"have shape [{len(labels)}, 4]", list(boxes.shape), "an image without objects has shape [0, 4]")
    counts = [len(target["labels"]) for target in targets]
    if not any(counts):
        return
    # the values come from the device at once, not image by image
    all_boxes, all_labels = (torch.cat([target[name] for target in targets]).cpu().split(counts) for name in ("boxes", "labels"))
    for number, (boxes, labels) in enumerate(zip(all_boxes, all_labels, strict=True)):
        if not len(boxes):
            continue
        if not 0 <= labels.min() <= labels.max() < num_classes:
            check.fail(
                told, f"labels of image {number}", f"lie in 0..{num_classes - 1}", f"{labels.min()}..{labels.max()}", "there is no class for the background"
            )
        if not (boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()):
            check.fail(told, f"boxes of image {number}", "be x0 y0 x1 y1 with x1 > x0 and y1 > y0", boxes.tolist(), "are they x, y, width, height?")
        if not ((boxes[:, 2:] > 0).all() and (boxes[:, 0] < columns).all() and (boxes[:, 1] < rows).all()):
            check.fail(told, f"boxes of image {number}", f"lie in the image of {rows} x {columns} pixels", boxes.tolist(), "were they resized with it?")
