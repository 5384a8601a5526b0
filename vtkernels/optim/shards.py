"""Parameters sharded over processes (DTensor: FSDP2, tensor parallelism): the part that lies here, and sums over all parts."""

import sys
from collections import defaultdict

import torch
from torch import Tensor

from vtkernels.ops.sam import sam_square_sum


def is_sharded(tensor: Tensor) -> bool:
    """Without importing torch.distributed: who has a DTensor has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors themselves, of DTensors the part that lies here (same storage)."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return tensors
    dtensor = module.DTensor
    if not any(issubclass(kind, dtensor) for kind in set(map(type, tensors))):
        return tensors
    return [tensor.to_local() if isinstance(tensor, dtensor) else tensor for tensor in tensors]


def square_sum(params: list[Tensor], grads: list[Tensor], adaptive: list[bool], eta: list[float], backend: str) -> Tensor:
    """Sum of squares over all tensors and over all processes that hold other parts of them: the same number on each of these."""
    parts = defaultdict(list)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        where = (param.device_mesh, tuple(param.placements)) if is_sharded(param) else None
        if where and tuple(grad.placements) != where[1]:
            raise ValueError(
                f"SAM: the gradient of a DTensor must be placed as its parameter ({where[1]}), got {tuple(grad.placements)}; redistribute it before first_step"
            )
        parts[where, eta[i] if adaptive[i] else 0.0].append(i)
    total = 0.0
    for (where, part_eta), members in parts.items():
        chosen = ([values[i] for i in members] for values in (params, grads, adaptive))
        part_params, part_grads, part_adaptive = chosen
        part = sam_square_sum(local(part_params), local(part_grads), adaptive=part_adaptive, eta=part_eta, backend=backend)
        if where is not None:
            _add_up(part, *where)
        total = total + part
    return total


def _add_up(part: Tensor, mesh: object, placements: tuple) -> None:
    for dim, placement in enumerate(placements):
        if placement.is_partial():
            raise ValueError(f"SAM: parameters must be sharded or replicated, got the placements {placements}; redistribute the model first")
        if not placement.is_replicate():
            torch.distributed.all_reduce(part, group=mesh.get_group(dim))
