"""Batches of two sets at once: labelled images, and images without labels beside them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.check import fail
from vtkernels.data.loader import Loader


@dataclass(frozen=True)
class StreamTargets:
    """Targets of a batch whose images are the labelled ones, followed by the unlabelled ones (all first views, all second views, ...).

    Attributes:
        labelled: of the first images.
        unlabelled: what is known of the others: pseudo-labels as classes [U] or probabilities [U, K], or -1.
    """

    labelled: Tensor
    unlabelled: Tensor

    def __len__(self) -> int:
        """Images, whatever the number of their views."""
        return len(self.labelled) + len(self.unlabelled)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What belongs to the labelled images, and to all views of the others."""
        return values[: len(self.labelled)], values[len(self.labelled) :]


class TwoStreams:
    """Batches (images, `StreamTargets`), each a batch of `labelled` and one of `unlabelled`; to a trainer it is a loader like others.

    An epoch is one of the labelled set. The other goes on over epochs, so that all of it is seen: after n batches of the pair, both streams have
    given n. `state_dict` says which batches come next, and after `load_state_dict` the next iteration begins with these.

    Args:
        labelled, unlabelled: training loaders of `create_loader`, with the same image size; how many images each has in a batch is their own.
    """

    def __init__(self, labelled: Loader, unlabelled: Loader):
        for name, loader in (("labelled", labelled), ("unlabelled", unlabelled)):
            if not isinstance(loader, Loader) or not loader.train:
                got = "a loader for evaluation" if isinstance(loader, Loader) else type(loader).__name__
                fail("TwoStreams", name, "be a loader for training", got, "try create_loader(dataset, batch_size, train=True)", TypeError)
            if not len(loader):
                fail("TwoStreams", name, "have at least one batch", 0, "try a smaller batch_size")
        if labelled is unlabelled:
            fail("TwoStreams", "unlabelled", "be another loader than labelled", "the same one", "make two")
        self._labelled, self._unlabelled = _Endless(labelled), _Endless(unlabelled)
        self.epoch, self._given, self._at_place = 0, 0, True

    def __len__(self) -> int:
        return len(self._labelled.loader)

    @property
    def corrupt(self) -> list[str]:
        """Paths of unreadable images that were skipped."""
        return [*self._labelled.loader.corrupt, *self._unlabelled.loader.corrupt]

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self._go_to(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, StreamTargets]]:
        if not self._at_place:
            # the last iteration was left in its middle
            self._go_to(self.epoch)
        self._at_place = False
        while self._given < len(self):
            (images, targets), (more, told) = next(self._labelled), next(self._unlabelled)
            self._given += 1
            yield joined(images, more), StreamTargets(targets, told)
        self.epoch, self._given, self._at_place = self.epoch + 1, 0, True

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self._given,
            "labelled": self._labelled.loader.state_dict(),
            "unlabelled": self._unlabelled.loader.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "unlabelled" not in state:
            fail("TwoStreams.load_state_dict", "state", "come from two streams", "that of one loader", "was the run begun without unlabelled images?")
        self._labelled.load(state["labelled"])
        self._unlabelled.load(state["unlabelled"])
        # of another number of processes, it is another number of batches
        then, now = state["labelled"]["batch"], self._labelled.loader.state_dict()["batch"]
        given = state["batch"] * now // then if then else state["batch"]
        self.epoch, self._given, self._at_place = state["epoch"], given, True

    def _go_to(self, epoch: int) -> None:
        for stream in (self._labelled, self._unlabelled):
            passes, batch = divmod(epoch * len(self), len(stream.loader))
            stream.load(stream.loader.state_dict() | {"epoch": passes, "batch": batch})
        self.epoch, self._given, self._at_place = epoch, 0, True


class _Endless:
    """A loader's batches, one epoch after the other."""

    def __init__(self, loader: Loader):
        self.loader, self._batches = loader, None

    def __next__(self) -> tuple[Tensor, Any]:
        # what is left of an epoch may be nothing, of a whole one never
        for _ in range(3):
            self._batches = self._batches or iter(self.loader)
            batch = next(self._batches, None)
            if batch is not None:
                return batch
            self._batches = None
        fail("TwoStreams", "a whole epoch of one stream", "have a batch that can be used", "none", "are all its images unreadable?", RuntimeError)

    def load(self, state: dict[str, int]) -> None:
        self._batches = None
        self.loader.load_state_dict(state)


def joined(images: Tensor, more: Tensor) -> Tensor:
    if images.shape[1:] != more.shape[1:] or images.dtype != more.dtype:
        told = f"{list(images.shape[1:])} {images.dtype} and {list(more.shape[1:])} {more.dtype}"
        fail("TwoStreams", "images of both streams", "have one shape and type", told, "give both loaders the same size and statistics")
    return torch.cat([images, more])
