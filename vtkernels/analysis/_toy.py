"""Problems small enough to train many networks on: a whole data set in memory, and a plain training loop."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core.check import fail
from vtkernels.analysis._model import penultimate
from vtkernels.data import create_dataset
from vtkernels.data.loader import normalised


def images_of(data: str, split: str, size: int, root: str | None = None) -> tuple[Tensor, Tensor]:
    """(images [N, C, size, size], normalised, labels [N]): a whole split."""
    if size < 1:
        fail("analysis", "size", "be positive", size)
    dataset = create_dataset(data, split, root=root, **({"size": size} if data == "digits" else {}))
    images, labels = [], []
    for index in range(len(dataset)):
        image, label = dataset[index]
        images.append(_resized(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], size))
        labels.append(int(label))
    if not images:
        fail("analysis", "data", "hold at least one image", f"none in split {split!r} of {data!r}", "try another split")
    return normalised(torch.cat(images), dataset.statistics), torch.tensor(labels)


def _resized(image: Tensor, size: int) -> Tensor:
    if image.shape[2:] == (size, size):
        return image
    return F.interpolate(image.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` images, drawn class after class in turn."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(order)
    for label in labels.unique():
        of_class = (labels[order] == label).nonzero().flatten()
        rank[of_class] = torch.arange(len(of_class))
    return order[rank.sort(stable=True).indices[:count]]


def fit(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    updates: int,
    batch: int = 32,
    lr: float = 2e-3,
    of_features: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train by AdamW, with a rate that falls to zero along a cosine. Draws come from torch's global generator.

    Args:
        of_features: a loss of what the classifier is given and of the labels, which is added to cross-entropy.
    """
    device = next(net.parameters()).device
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, updates))
    for part in itertools.islice(_shuffled(len(images), batch), updates):
        optimizer.zero_grad()
        inputs, targets = images[part].to(device), labels[part].to(device)
        if of_features is None:
            loss = F.cross_entropy(net(inputs), targets)
        else:
            features, logits = penultimate(net, inputs)
            loss = F.cross_entropy(logits, targets) + of_features(features, targets)
        loss.backward()
        optimizer.step()
        schedule.step()
    _settle(net, images, batch)
    return net.eval()


def _shuffled(count: int, batch: int) -> Iterator[Tensor]:
    """Batches of indices, epoch after epoch, as even as can be: of 40 images and at most 32, a batch of 8 would mislead every second step."""
    while True:
        yield from torch.randperm(count).tensor_split(-(-count // batch))


@torch.no_grad()
def _settle(net: nn.Module, images: Tensor, batch: int) -> None:
    """Statistics of batch normalisation from the final weights: a short training leaves their running means far behind."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # the mean over all batches
        norm.momentum = None
    if norms:
        for part in images.split(batch):
            if len(part) > 1 or len(images) == 1:
                net(part.to(next(net.parameters()).device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    device = next(net.parameters()).device
    right = sum(int((net(part.to(device)).argmax(-1).cpu() == true).sum()) for part, true in zip(images.split(batch), labels.split(batch), strict=True))
    return right / len(labels)


__all__ = ["accuracy", "fit", "images_of", "stratified"]
