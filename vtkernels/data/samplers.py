"""Which samples an epoch visits, in which order, and which of them are this process's."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from vtkernels._core.check import fail


class SampleKey(NamedTuple):
    """One visit of one sample. Everything random about it is drawn from (seed, key), by whichever process handles it."""

    epoch: int
    index: int
    copy: int


class EpochSampler(Sampler[SampleKey]):
    """Keys of the samples of one epoch; `rank` of `world` processes takes every world-th."""

    def __init__(self, count: int, *, seed: int = 0, rank: int = 0, world: int = 1):
        if not 0 <= rank < world:
            fail(type(self).__name__, "rank", f"lie in 0..{world - 1}", rank)
        self.count, self.seed, self.rank, self.world = count, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def visits(self) -> np.ndarray:
        """[n, 2]: index and copy of each sample this process visits in the current epoch, in order."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[SampleKey]:
        for index, copy in self.visits().tolist():
            yield SampleKey(self.epoch, index, copy)

    def _permutation(self) -> np.ndarray:
        """The same in all processes."""
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch)).numpy()


class InOrder(EpochSampler):
    """Each sample exactly once over all processes, without padding: shares may differ by one, and no sample counts twice."""

    def visits(self) -> np.ndarray:
        indices = np.arange(self.rank, self.count, self.world)
        return np.stack([indices, np.zeros_like(indices)], axis=1)

    def __len__(self) -> int:
        return len(range(self.rank, self.count, self.world))


class Shuffled(EpochSampler):
    """A permutation by (seed, epoch), padded from its front so that all processes get equally many."""

    def visits(self) -> np.ndarray:
        order = self._permutation()
        return _padded(np.stack([order, np.zeros_like(order)], axis=1), len(self) * self.world, 1)[self.rank :: self.world]

    def __len__(self) -> int:
        return math.ceil(self.count / self.world)


class Repeated(EpochSampler):
    """Repeated augmentation: each sample `repeats` times in a row, dealt out so that the copies lie in different processes.

    An epoch stays as long as without repeats, and so sees about 1 / repeats of the samples.

    Args:
        round_to: processes share the largest multiple of this that the set holds, as published; 0, or a smaller set, shares all.
    """

    def __init__(self, count: int, repeats: int = 3, *, seed: int = 0, rank: int = 0, world: int = 1, round_to: int = 256):
        super().__init__(count, seed=seed, rank=rank, world=world)
        if repeats < 1:
            fail("Repeated", "repeats", "be at least 1", repeats)
        self.repeats, self.round_to = repeats, round_to

    def visits(self) -> np.ndarray:
        order = np.repeat(self._permutation(), self.repeats)
        rows = np.stack([order, np.tile(np.arange(self.repeats), self.count)], axis=1)
        total = math.ceil(len(rows) / self.world) * self.world
        return _padded(rows, total, self.repeats)[self.rank :: self.world][: len(self)]

    def __len__(self) -> int:
        if 0 < self.round_to <= self.count:
            return self.count // self.round_to * self.round_to // self.world
        return math.ceil(self.count / self.world)


def _padded(rows: np.ndarray, total: int, repeats: int) -> np.ndarray:
    """Rows from the front again, as further copies: they are augmented in another way."""
    again = np.resize(rows, (total - len(rows), 2)) if len(rows) else rows
    again[:, 1] += repeats * (1 + np.arange(len(again)) // max(len(rows), 1))
    return np.concatenate([rows, again])
