"""Batches from a data set: the same ones whatever the number of workers, and from any batch on."""

import inspect
import logging
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vtkernels._core.check import fail
from vtkernels.data.augment.random import sample_seed
from vtkernels.data.datasets._base import CorruptImage, Statistics
from vtkernels.data.samplers import EpochSampler, InOrder, Repeated, SampleKey, Shuffled

log = logging.getLogger(__name__)

# sets the draws of batch n apart from those of sample n
_OF_BATCHES = 1


def create_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool = False,
    transform: Callable | None = None,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    augment: Callable | None = None,
    statistics: Statistics | None = None,
    erase: Callable | None = None,
    mix: Callable | None = None,
    repeats: int = 1,
    sampler: EpochSampler | None = None,
    rank: int | None = None,
    world: int | None = None,
    drop_last: bool | None = None,
    on_corrupt: str = "raise",
) -> "Loader":
    """A loader of batches (images, targets).

    Images become one tensor: uint8 arrays [H, W, C] and Pillow's images a uint8 tensor [B, C, H, W], other arrays and tensors are stacked as
    they are. Where the transform answers with several views of the image, a list or one array [V, C, H, W], the batch is [V * B, ...], all
    first views before all second ones. Targets become one tensor, dictionaries a list.

    Args:
        dataset: map-style, of pairs (image, target).
        train: shuffled by (seed, epoch), equally many samples in every process, incomplete batches left out. Otherwise in order, each sample
            exactly once over all processes, so that the last batches of processes may differ.
        transform: `transform(image, seed=...)`, which gets a 64-bit number of its own for each visit of a sample, or `transform(image)`; what
            this kind draws from torch's, NumPy's and Python's global generators is seeded for each visit too. One with an argument `target`,
            as in `joint`, gets the target as well and answers with both.
        workers: processes that read and transform; 0 does so in this one.
        device: where batches go, by pinned memory and ahead of their use where that is a GPU.
        augment: `augment(images, seed)` of whole uint8 batches on the device, such as `BatchRandAugment(...)`, or `BatchAugMix(...).views`, whose
            answer is normalised already.
        statistics: if given, images leave as float32, pixels normalised by these after the transfer.
        erase: `erase(images, rng=...)` of whole batches on the device, before mixing, such as `RandomErasing` or `Cutout`.
        mix: `mix(images, targets, rng=...)` of whole batches on the device, such as `Mixup`. An odd batch loses its last sample first,
            and a batch of one is left out.
        repeats: repeated augmentation, see `Repeated`. Another order altogether is a `sampler`, which then brings its own share of the set.
        rank, world: which process this is; asked of torch.distributed where they are None.
        drop_last: whether incomplete batches are left out, if not as `train` says.
        on_corrupt: "raise", or "skip": the batch has fewer samples, `loader.corrupt` counts and names the file, and the log does.
    """
    if batch_size < 1:
        fail("create_loader", "batch_size", "be at least 1", batch_size)
    if seed < 0:
        fail("create_loader", "seed", "be at least 0", seed)
    if on_corrupt not in ("raise", "skip"):
        fail("create_loader", "on_corrupt", "be 'raise' or 'skip'", repr(on_corrupt))
    if sampler is None:
        place = _place(rank, world)
        if repeats != 1 and not train:
            fail("create_loader", "repeats", "be 1 where train is False", repeats, "evaluation counts each sample once")
        if train:
            sampler = Repeated(len(dataset), repeats, seed=seed, **place) if repeats > 1 else Shuffled(len(dataset), seed=seed, **place)
        else:
            sampler = InOrder(len(dataset), seed=seed, **place)
    elif repeats != 1 or rank is not None or world is not None:
        fail("create_loader", "repeats, rank and world", "be left to the sampler where one is given", (repeats, rank, world))
    batches = _Batches(sampler, batch_size, train if drop_last is None else drop_last)
    if train and not len(batches):
        least = f"hold a batch of {batch_size} for this process"
        fail("create_loader", "the training set", least, f"{len(sampler)} samples", "try a smaller batch_size, or drop_last=False")
    if train and mix is not None and batch_size == 1:
        fail("create_loader", "batch_size", "be at least 2 where images are mixed", batch_size, "a sample is mixed with another of its batch")
    return Loader(_Seeded(dataset, transform, seed), batches, train, workers, torch.device(device or "cpu"), augment, statistics, erase, mix, on_corrupt)


def _place(rank: int | None, world: int | None) -> dict[str, int]:
    if (rank is None) != (world is None):
        fail("create_loader", "rank and world", "be given together", (rank, world))
    if rank is not None:
        return {"rank": rank, "world": world}
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return {"rank": distributed.get_rank(), "world": distributed.get_world_size()}
    return {"rank": 0, "world": 1}


class Loader:
    """Iterable of batches; made by `create_loader`.

    A training loader goes on to the next epoch when it has been iterated to the end; `set_epoch` chooses another. `state_dict` says which
    batch comes next, and after `load_state_dict` the next iteration begins with that one, without reading those before. A state of another
    number of processes is taken where their batches together end where a batch of these begins.

    Attributes:
        epoch: the one that the next iteration gives, or the current one gives.
        corrupt: paths of unreadable images that were skipped, in the order of their visits.
    """

    def __init__(
        self,
        samples: "_Seeded",
        batches: "_Batches",
        train: bool,
        workers: int,
        device: torch.device,
        augment: Callable | None,
        statistics: Statistics | None,
        erase: Callable | None,
        mix: Callable | None,
        on_corrupt: str,
    ):
        self.samples, self.batches, self.train, self.device = samples, batches, train, device
        self.augment, self.statistics, self.erase, self.mix, self.on_corrupt = augment, statistics, erase, mix, on_corrupt
        self.epoch, self.corrupt = 0, []
        self._given, self._resume = 0, 0
        self._loader = DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            # the main process's global generator is left alone
            generator=torch.Generator().manual_seed(samples.seed),
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self._given, self._resume = epoch, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        self.batches.begin(self.epoch, self._resume)
        if hasattr(self.mix, "set_epoch"):
            self.mix.set_epoch(self.epoch)
        start, self._resume = self._resume, 0
        self._given = start
        ahead = self._ahead if self.device.type == "cuda" else self._one_by_one
        for number, batch in ahead(enumerate(self._loader, start)):
            # what is being given counts as given: the state that is saved with it continues behind it
            self._given = number + 1
            yield batch
        self._given = 0
        if self.train:
            self.epoch += 1

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self._given or self._resume, **self._shape()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        own, batch, left_over = self._shape(), state["batch"], 1
        differing = {name: (state.get(name), value) for name, value in own.items() if state.get(name) != value}
        if "world" in differing and differing.keys() <= {"batch_size", "rank", "world"} <= state.keys():
            # all processes together read an epoch in one order, in steps of one batch of each
            batch, left_over = divmod(batch * state["batch_size"] * state["world"], own["batch_size"] * own["world"])
        if differing and left_over:
            told = ", ".join(f"{name} {old} then and {new} now" for name, (old, new) in differing.items())
            fail("Loader.load_state_dict", "state", "come from a loader of the same batches", told, "go on at an epoch's start with set_epoch")
        self.epoch, self._given, self._resume = state["epoch"], 0, batch

    def _shape(self) -> dict[str, int]:
        """What the numbering of batches rests on."""
        sampler = self.batches.sampler
        return {"seed": self.samples.seed, "batch_size": self.batches.size, "samples": sampler.count, "rank": sampler.rank, "world": sampler.world}

    def _one_by_one(self, batches: Iterable[tuple[int, "_Collated"]]) -> Iterator[tuple[int, tuple[Tensor, Any]]]:
        for number, batch in batches:
            if self._has_samples(batch):
                yield number, self._finished(number, batch)

    def _ahead(self, batches: Iterable[tuple[int, "_Collated"]]) -> Iterator[tuple[int, tuple[Tensor, Any]]]:
        """The next batch travels on a stream of its own while the current one is used."""
        stream, waiting = torch.cuda.Stream(self.device), None
        for number, batch in batches:
            if not self._has_samples(batch):
                continue
            with torch.cuda.stream(stream):
                coming = number, self._finished(number, batch), stream.record_event()
            if waiting is not None:
                yield _arrived(*waiting)
            waiting = coming
        if waiting is not None:
            yield _arrived(*waiting)

    def _has_samples(self, batch: "_Collated") -> bool:
        for path, reason in batch.corrupt:
            if self.on_corrupt == "raise":
                raise CorruptImage(path, reason)
            self.corrupt.append(path)
            log.warning("skipped an unreadable image (%d so far): %s: %s", len(self.corrupt), path, reason)
        # of a single sample nothing is left to mix
        return batch.images is not None and (self.mix is None or len(batch.targets) > 1)

    def _finished(self, number: int, batch: "_Collated") -> tuple[Tensor, Any]:
        images, targets = batch.images, batch.targets
        if self.mix is not None and len(targets) % 2:
            images, targets = images.unflatten(0, (-1, len(targets)))[:, :-1].flatten(0, 1), targets[:-1]
        images, targets = _moved(images, self.device), _moved(targets, self.device)
        seed = sample_seed(self.samples.seed, self.epoch, number, self.batches.sampler.rank, _OF_BATCHES)
        if self.augment is not None:
            images = self.augment(images, seed)
        if self.statistics is not None:
            images = normalised(images, self.statistics)
        rng = np.random.RandomState(seed % 2**32)
        if self.erase is not None:
            images = self.erase(images, rng=rng)
        if self.mix is not None:
            images, targets = self.mix(images, targets, rng=rng)
        return images, targets


def normalised(images: Tensor, statistics: Statistics) -> Tensor:
    """float32 images [B, C, H, W] of mean 0 and deviation 1 from uint8 ones, or from floating ones in [0, 1]."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] * scale for values in statistics)
    return (images.float() - mean) / std


class _Batches:
    """Lists of keys, from some batch of some epoch on."""

    def __init__(self, sampler: EpochSampler, size: int, drop_last: bool):
        self.sampler, self.size, self.drop_last = sampler, size, drop_last
        self.start = 0

    def begin(self, epoch: int, start: int) -> None:
        self.sampler.set_epoch(epoch)
        self.start = start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, visits = self.sampler.epoch, self.sampler.visits()
        for number in range(self.start, len(self)):
            yield [SampleKey(epoch, *visit) for visit in visits[number * self.size : (number + 1) * self.size].tolist()]

    def __len__(self) -> int:
        return len(self.sampler) // self.size if self.drop_last else math.ceil(len(self.sampler) / self.size)


class _Failure(NamedTuple):
    path: str
    reason: str


class _Seeded(Dataset):
    """Transformed samples by key; a corrupt one is answered by its path, so that the main process decides."""

    def __init__(self, dataset: Dataset, transform: Callable | None, seed: int):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        asked = _parameters(transform) if transform is not None else ()
        self.takes_seed, self.takes_target = "seed" in asked, "target" in asked

    def __getitem__(self, key: SampleKey) -> tuple[Any, Any] | _Failure:
        try:
            image, target = self.dataset[key.index]
        except CorruptImage as error:
            return _Failure(error.path, error.reason)
        if self.transform is None:
            return image, target
        given = (image, target) if self.takes_target else (image,)
        seed = sample_seed(self.seed, *key)
        if self.takes_seed:
            result = self.transform(*given, seed=seed)
        else:
            with _global_generators(seed % 2**32):
                result = self.transform(*given)
        return result if self.takes_target else (result, target)


def _parameters(transform: Callable) -> Collection[str]:
    # a module's own signature is that of any module
    call = transform.forward if isinstance(transform, torch.nn.Module) else transform
    try:
        return inspect.signature(call).parameters
    except ValueError:
        # some functions written in C tell none
        return ()


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seeds the generators that other libraries draw from. In the main process they go on afterwards as if nothing had been drawn."""
    in_worker = get_worker_info() is not None
    states = None if in_worker else (random.getstate(), np.random.get_state(), torch.random.get_rng_state())
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if states is not None:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.random.set_rng_state(states[2])


class _Collated(NamedTuple):
    images: Tensor | None
    targets: Any
    corrupt: list[_Failure]


def _collate(samples: list[tuple[Any, Any] | _Failure]) -> _Collated:
    corrupt = [sample for sample in samples if isinstance(sample, _Failure)]
    sound = [sample for sample in samples if not isinstance(sample, _Failure)]
    if not sound:
        return _Collated(None, None, corrupt)
    images, targets = zip(*sound, strict=True)
    several = isinstance(images[0], (tuple, list)) or getattr(images[0], "ndim", 3) == 4
    stacked = torch.cat([_stack(view) for view in zip(*images, strict=True)]) if several else _stack(images)
    return _Collated(stacked, _collated_targets(targets), corrupt)


def _stack(images: tuple) -> Tensor:
    images = [image if isinstance(image, Tensor) else np.asarray(image) for image in images]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        fail("Loader", "images", "have one shape in a batch", sorted(shapes)[:4], "let the transform resize or crop")
    if isinstance(images[0], Tensor):
        return torch.stack(images)
    batch = torch.from_numpy(np.stack(images))
    if batch.dtype != torch.uint8:
        return batch
    return batch.permute(0, 3, 1, 2).contiguous() if batch.dim() == 4 else batch[:, None]


def _collated_targets(targets: tuple) -> Any:
    if isinstance(targets[0], dict):
        return [{name: torch.as_tensor(value) for name, value in target.items()} for target in targets]
    if isinstance(targets[0], (np.ndarray, Tensor)):
        return torch.stack([torch.as_tensor(target) for target in targets])
    return torch.tensor(targets)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [{name: part.to(device, non_blocking=True) for name, part in entry.items()} for entry in value]


def _arrived(number: int, batch: tuple[Tensor, Any], event: "torch.cuda.Event") -> tuple[int, tuple[Tensor, Any]]:
    """Makes the current stream wait for the batch, and keeps its memory until that stream is done with it."""
    stream = torch.cuda.current_stream(batch[0].device)
    stream.wait_event(event)
    entries = [batch[1]] if isinstance(batch[1], Tensor) else [part for entry in batch[1] for part in entry.values()]
    for tensor in (batch[0], *entries):
        tensor.record_stream(stream)
    return number, batch
