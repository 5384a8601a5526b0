"""ImageNet's other test sets: labels reassessed (ReaL), taken anew (V2), and renditions (R) and natural adversarial images (A) of 200 classes.

V2 needs no measure of its own: `create_dataset("imagenet-v2")` reads its folders as numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.check import fail
from vtkernels.evaluation._inputs import given_classes, given_logits
from vtkernels.evaluation.classification import top_k_correct


def real_accuracy(logits: Any, labels: Sequence[Sequence[int]] | Tensor, k: int = 1) -> float:
    """Share of the images with a label whose k highest logits hold any of their labels.

    Args:
        labels: the classes of each image, as in real.json, or bool [N, K]. Images without any do not count, nor in the denominator.
    """
    logits = given_logits("real_accuracy", logits)
    if len(labels) != len(logits):
        fail("real_accuracy", "labels", f"be as many as the samples ({len(logits)})", len(labels), "match them by the number in the file's name")
    marked = labels if isinstance(labels, Tensor) else _marked(labels, logits.shape[1])
    kept = marked.any(dim=1)
    if not kept.any():
        fail("real_accuracy", "labels", "name a class for some image", "none at all")
    return top_k_correct(logits[kept], marked[kept], k).double().mean().item()


def _marked(labels: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    marked = torch.zeros(len(labels), num_classes, dtype=torch.bool)
    for row, own in zip(marked, labels, strict=True):
        if not hasattr(own, "__len__"):
            fail("real_accuracy", "labels", "hold a list of classes for each image", repr(own), "one class each is what top_k_accuracy takes", TypeError)
        if len(own):
            row[given_classes("real_accuracy", "labels", torch.tensor(list(own)), None, num_classes)] = True
    return marked


def class_logits(logits: Any, ids: Sequence[int]) -> Tensor:
    """[N, len(ids)]: the logits of some classes only, numbered from 0 in the order of `ids`: the usual protocol of ImageNet-R and -A."""
    logits = given_logits("class_logits", logits)
    ids = given_classes("class_logits", "ids", torch.as_tensor(ids), None, logits.shape[1]).to(logits.device)
    if len(ids.unique()) != len(ids):
        fail("class_logits", "ids", "be different classes", "some twice")
    return logits[:, ids]


def subset_accuracy(logits: Any, targets: Any, ids: Sequence[int], k: int = 1, masked: bool = True) -> float:
    """Accuracy on a set of some of the model's classes.

    Args:
        logits: [N, K] of all classes.
        targets: [N] in 0..len(ids)-1.
        ids: the place of each class of the set among the model's.
        masked: compare the logits of these classes only. Without, an answer outside them is wrong; the two are some 14 points apart on ImageNet-R
            and must not be mixed.
    """
    inside = class_logits(logits, ids)
    targets = given_classes("subset_accuracy", "targets", targets, len(inside), len(ids))
    if masked:
        return top_k_correct(inside, targets, k).double().mean().item()
    return top_k_correct(logits, torch.as_tensor(ids)[targets], k).double().mean().item()
