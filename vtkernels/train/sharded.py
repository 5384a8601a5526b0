"""Checkpoints of which each process writes its part, by torch.distributed.checkpoint."""

import errno
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.optim.shards import is_sharded
from vtkernels.train import checkpoint
from vtkernels.train.errors import CheckpointError

# what is no tensor, and where the tensors belong in it
REST = "rest.pt"
_MARK = "__sharded__"


def write(state: dict[str, Any], folder: Path, main: bool) -> None:
    """Called in all processes; `folder` is there."""
    from torch.distributed.checkpoint import CheckpointException, save

    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(state, tensors, "")
    try:
        save(tensors, checkpoint_id=folder)
    except CheckpointException as error:
        raise CheckpointError(errno.EIO, f"{folder} could not be written ({error})") from error
    if main:
        checkpoint.write(rest, folder / REST)


def read(folder: Path, like: nn.Module) -> dict[str, Any]:
    """Called in all processes; `like` is sharded over them."""
    from torch.distributed.checkpoint import CheckpointException, load

    rest = checkpoint.read(folder / REST)
    mesh = next(param.device_mesh for param in like.parameters() if is_sharded(param))
    tensors: dict[str, Tensor] = {}
    _allocate(rest, tensors, mesh)
    try:
        load(tensors, checkpoint_id=folder)
    except (CheckpointException, RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(errno.EIO, f"checkpoint {folder} is damaged ({error})") from error
    return _with_tensors(rest, tensors)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Of sharded parameters all parts, on the CPU; called in all processes."""
    return {name: (value.full_tensor() if is_sharded(value) else value).detach().cpu() for name, value in module.state_dict().items()}


def _without_tensors(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Sharded tensors and those beside them move to `tensors`, by their path; their shape stays."""
    if isinstance(value, dict):
        return {key: _without_tensors(part, tensors, f"{path}/{key}") for key, part in value.items()}
    # what each process has for itself is in lists, and is no part of the model
    if not isinstance(value, Tensor):
        return value
    tensors[path] = value
    shards = [getattr(placement, "dim", None) for placement in value.placements] if is_sharded(value) else None
    return {_MARK: path, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "device": value.device.type, "shards": shards}


def _allocate(value: Any, tensors: dict[str, Tensor], mesh: Any) -> None:
    if not isinstance(value, dict):
        return
    if _MARK not in value:
        for part in value.values():
            _allocate(part, tensors, mesh)
        return
    dtype = getattr(torch, value["dtype"])
    if value["shards"] is None:
        # counts of steps may live on the CPU beside weights on GPUs
        tensors[value[_MARK]] = torch.empty(value["shape"], dtype=dtype, device=value["device"])
        return
    from torch.distributed import tensor

    placements = [tensor.Replicate() if dim is None else tensor.Shard(dim) for dim in value["shards"]]
    tensors[value[_MARK]] = tensor.empty(value["shape"], dtype=dtype, device_mesh=mesh, placements=placements)


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if _MARK in value:
        return tensors[value[_MARK]]
    return {key: _with_tensors(part, tensors) for key, part in value.items()}
