"""Several processes: joining and leaving them, and the task on each."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vtkernels.models import Model
from vtkernels.optim import shards
from vtkernels.train.settings import Settings
from vtkernels.train.task import Task


@contextlib.contextmanager
def processes(backend: str | None = None) -> Iterator[torch.device]:
    """Joins the group that torchrun has told of, if it has, and leaves it; gives the device of this process."""
    device = this_device()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or is_parallel():
        yield device
        return
    torch.distributed.init_process_group(backend or ("nccl" if device.type == "cuda" else "gloo"))
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()


def this_device() -> torch.device:
    """The GPU of this process if there is one, which becomes the current one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    torch.cuda.set_device(device)
    return device


def is_parallel() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    return torch.distributed.get_rank() if is_parallel() else 0


def world() -> int:
    return torch.distributed.get_world_size() if is_parallel() else 1


def gathered(value: Any) -> list[Any]:
    """What each process has, on all of them."""
    if world() == 1:
        return [value]
    values = [None] * world()
    torch.distributed.all_gather_object(values, value)
    return values


def totals(values: list[float | Tensor], device: torch.device) -> list[float]:
    """The sum of each value over all processes, on all of them. Waits for the device once."""
    if world() == 1 and not any(isinstance(value, Tensor) and value.is_cuda for value in values):
        return [float(value) for value in values]
    found = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
    if world() > 1:
        torch.distributed.all_reduce(found)
    return found.tolist()


def prepare(task: nn.Module, settings: Settings, device: torch.device | None = None) -> nn.Module:
    """The task on its device and, with several processes, wrapped or sharded: what forwards are called on, and what an optimizer is made for.

    What is done already is not done again, so a prepared task may be given, too.
    """
    if isinstance(task, DistributedDataParallel):
        return task
    sharded = is_sharded(task)
    if not sharded:
        task.to(device or this_device())
    if wants_channels_last(task.model, settings):
        task.to(memory_format=torch.channels_last)
    if settings.grad_checkpointing:
        task.model.set_grad_checkpointing(True)
    if settings.compile and not getattr(task, "is_compiled", False):
        task.compile_model()
        task.is_compiled = True
    if sharded or settings.parallel == "none" or (settings.parallel == "auto" and world() == 1) or not is_parallel():
        return task
    if settings.parallel == "fsdp2":
        return shard(task)
    ids = [device.index] if device is not None and device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=ids, find_unused_parameters=settings.find_unused)


def shard(task: Task) -> Task:
    """In place: parameters, gradients and optimizer state spread over all processes (FSDP2), gathered block by block when they are used."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(task.parameters()).device.type, (world(),))
    for block in blocks(task.model):
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    register_fsdp_forward_method(task, "evaluate")
    return task


def reshard(task: nn.Module) -> None:
    """After a forward without a backward: the outermost weights would stay gathered, and what is then done to the shards would be overlooked."""
    for module in task.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of a trunk that repeat, and are called as modules: those whose names end in a number."""
    if not isinstance(model, Model):
        return []
    return [model.get_submodule(prefix) for group in model.group_prefixes() for prefix in group if prefix.rpartition(".")[2].isdigit()]


def is_sharded(module: nn.Module) -> bool:
    return any(shards.is_sharded(param) for param in module.parameters())


def bare(module: nn.Module) -> Task:
    """The task without what surrounds it for data parallelism."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def wants_channels_last(model: nn.Module, settings: Settings) -> bool:
    """Whether convolutions do the work: attention and token mixers have their channels last anyway. Shards know no such layout."""
    if settings.parallel == "fsdp2":
        return False
    if settings.channels_last != "auto":
        return bool(settings.channels_last)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolutions > sum(isinstance(module, nn.Linear) for module in model.modules())
