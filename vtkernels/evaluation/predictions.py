"""What a model answers to every sample of a set, each exactly once over all processes."""

import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from vtkernels._core.check import fail
from vtkernels.data.loader import Loader
from vtkernels.data.samplers import InOrder, Shuffled

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# attack(model, images, targets) -> images
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Predictions:
    """Answers and truths, on the CPU.

    Attributes:
        logits: [N, K], float32, or float64 from a model of float64.
        targets: int64 [N], -1 for images of no class; or bool [N, K] where images may be of several.
    """

    logits: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.logits)


def predict(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    precision: str = "float32",
    device: torch.device | str | None = None,
    attack: Attack | None = None,
    gather: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Logits and targets of all samples, the same in every process and in the set's order.

    The model runs in evaluation mode without gradients, and is left in the mode it was in.

    Args:
        model: a classifier; of DistributedDataParallel, its module.
        loader: `create_loader(dataset, ...)`, a DataLoader, or any batches of (images, targets).
        precision: "float32" leaves the model's own; "bfloat16" and "float16" are autocast.
        device: where the model is moved to; by default it stays where it is.
        attack: `attack(model, images, targets)`, which changes the images first, such as `pgd` with its radius filled in.
        gather: whether each process of torch.distributed has a share of the set. Known of the loaders above, whose padding is dropped; to be told of
            other batches.
        progress: is called with the number of samples after each batch of this process.
    """
    if precision not in PRECISIONS:
        fail("predict", "precision", f"be one of {', '.join(PRECISIONS)}", repr(precision))
    joined = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    shared, count = _shares(loader, joined, gather)
    if shared and _is_sharded(model) and isinstance(loader, Loader) and loader.batches.sampler.count < loader.batches.sampler.world:
        fail("predict", "loader", "give each process of a sharded model a sample", loader.batches.sampler.count, "evaluate in fewer processes")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # the wrapper synchronises buffers in each call, and processes may have different numbers of batches
        model = model.module
    if device is not None:
        model = model.to(device)
    logits, targets = [], []
    with _evaluating(model), torch.no_grad():
        for images, truth in loader:
            images, truth = _checked(images, truth, model)
            answer = _answer(model, images, truth, precision, attack)
            logits.append((answer if answer.dtype == torch.float64 else answer.float()).cpu())
            targets.append(truth.cpu())
            if progress is not None:
                progress(len(truth))
        if shared and _is_sharded(model):
            # such a model computes in step: who has fewer batches repeats the last one for nothing
            for _ in range(_most_batches(loader) - len(logits)):
                _answer(model, images, truth, precision, attack)
    own = (torch.cat(logits), torch.cat(targets)) if logits else None
    whole = _gathered(own) if shared else own
    if whole is None:
        fail("predict", "loader", "give at least one batch", "none", "is the data set empty?")
    return Predictions(*(part[:count] for part in whole))


@contextmanager
def _evaluating(model: nn.Module):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _answer(model: nn.Module, images: Tensor, targets: Tensor, precision: str, attack: Attack | None) -> Tensor:
    called = _autocast(model, images, precision)
    if attack is not None:
        images = attack(called, images, targets).detach()
    answer = called(images)
    _check_answer(answer, targets)
    return answer


def _autocast(model: nn.Module, images: Tensor, precision: str) -> Callable[[Tensor], Tensor]:
    dtype = PRECISIONS[precision]
    return torch.autocast(images.device.type, dtype)(model) if dtype is not None else model


def _shares(loader: Any, joined: bool, gather: bool | None) -> tuple[bool, int | None]:
    """Whether processes have different samples, and how many samples there are where the sampler pads."""
    count = None
    if isinstance(loader, Loader):
        sampler = loader.batches.sampler
        if loader.train or loader.mix is not None or not isinstance(sampler, (InOrder, Shuffled)):
            fail("predict", "loader", "give each sample once, as it is", "a loader for training", "try create_loader(dataset, batch_size, transform=...)")
        dropped = loader.batches.drop_last and len(sampler) % loader.batches.size
        split, count = sampler.world > 1, sampler.count if isinstance(sampler, Shuffled) else None
    elif isinstance(loader, DataLoader):
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        split = isinstance(sampler, DistributedSampler)
        dropped = loader.drop_last or (split and sampler.drop_last)
        count = len(sampler.dataset) if split else None
    elif joined and gather is None:
        fail("predict", "gather", "be told for batches of this kind in a distributed run", None, "True if processes have different samples")
    else:
        return joined and bool(gather), None
    if dropped:
        fail("predict", "loader", "give every sample", "drop_last=True", "try drop_last=False")
    split = split if gather is None else gather
    return joined and split, count if joined and split else None


def _checked(images: Tensor, targets: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
        got = f"{type(images).__name__} and {type(targets).__name__}"
        fail("predict", "batches", "be tensors (images, targets)", got, "evaluation is of classifiers", TypeError)
    if images.dtype == torch.uint8:
        hint = "try create_loader(..., transform=eval_transform(size)), or statistics=dataset.statistics"
        fail("predict", "images", "be normalised floats", "uint8 pixels", hint, TypeError)
    if targets.dim() not in (1, 2) or (targets.dim() == 2 and targets.dtype != torch.bool):
        fail("predict", "targets", "be classes [B], or bool [B, K]", f"{targets.dtype} {list(targets.shape)}", "soft targets are for training")
    like = next(model.parameters(), images)
    dtype = like.dtype if like.dtype.is_floating_point else images.dtype
    return images.to(like.device, dtype, non_blocking=True), targets.to(like.device, non_blocking=True)


def _check_answer(answer: Any, targets: Tensor) -> None:
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(targets):
        got = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        fail("predict", "model", f"answer with logits [{len(targets)}, K]", got, "is it a classifier, and are its views stacked?")


def _is_sharded(model: nn.Module) -> bool:
    return any(type(parameter).__name__ == "DTensor" or hasattr(parameter, "_is_flat_param") for parameter in model.parameters())


def _most_batches(loader: Any) -> int:
    """Of all processes."""
    if not isinstance(loader, Loader):
        return len(loader)
    sampler = loader.batches.sampler
    return math.ceil(math.ceil(sampler.count / sampler.world) / loader.batches.size)


def _gathered(own: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Every process's samples in the order of the set, from shares of unequal size, of which some may be empty."""
    world = distributed.get_world_size()
    shapes: list[Any] = [None] * world
    distributed.all_gather_object(shapes, None if own is None else [(tuple(part.shape), part.dtype) for part in own])
    there = [shape for shape in shapes if shape is not None]
    if not there:
        return None
    lengths = [0 if shape is None else shape[0][0][0] for shape in shapes]
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else torch.device("cpu")
    whole = []
    for place, ((_, *rest), dtype) in enumerate(there[0]):
        padded = torch.zeros(max(lengths), *rest, dtype=dtype, device=device)
        if own is not None:
            padded[: len(own[place])] = own[place].to(device)
        # gloo knows no bool
        travelling = padded.to(torch.uint8) if dtype == torch.bool else padded
        parts = [torch.empty_like(travelling) for _ in range(world)]
        distributed.all_gather(parts, travelling)
        whole.append(_in_order([part[:length].to("cpu", dtype) for part, length in zip(parts, lengths, strict=True)]))
    return tuple(whole)


def _in_order(parts: list[Tensor]) -> Tensor:
    total, world = sum(map(len, parts)), len(parts)
    if [len(part) for part in parts] != [len(range(rank, total, world)) for rank in range(world)]:
        # images were skipped: the order is lost, and no measure asks for it
        return torch.cat(parts)
    whole = torch.empty(total, *parts[0].shape[1:], dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        whole[rank::world] = part
    return whole
