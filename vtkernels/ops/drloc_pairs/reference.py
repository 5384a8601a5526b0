"""Pairs of positions for dense relative localisation, as plain tensor algebra: the specification every backend is held to.

Letters: B batch, H W map, C channels, m pairs of an image.
"""

import torch
from torch import Tensor

from vtkernels._core.op import Backend
from vtkernels._core.philox import philox
from vtkernels.ops.drloc_pairs.common import Call, Scatter


def draw_positions(call: Call) -> Tensor:
    """[B, m, 4]: (row, column, row, column), each uniform on its own axis and independent of all others.

    The four words of one Philox block for each pair, made a coordinate by a multiplication: the high half of word * size.
    """
    (batch, height, width, _), device = call.features.shape, call.features.device
    image = torch.arange(batch, device=device)[:, None]
    pair = torch.arange(call.num_pairs, device=device)[None, :]
    low, high = (torch.full_like(image, part) for part in (call.offset & 0xFFFFFFFF, (call.offset >> 32) & 0xFFFFFFFF))
    words = philox(call.seed, *torch.broadcast_tensors(pair, image, low, high))
    return torch.stack([(word * size) >> 32 for word, size in zip(words, (height, width) * 2, strict=True)], -1)


def positions_of(call: Call) -> Tensor:
    """Those given, held to the grid, or those drawn."""
    if call.positions is None:
        return draw_positions(call)
    _, height, width, _ = call.features.shape
    last = torch.tensor([height - 1, width - 1] * 2, device=call.positions.device)
    return torch.minimum(call.positions.clamp(min=0), last).contiguous()


def targets_of(call: Call, positions: Tensor) -> Tensor:
    """[B, m, 2]: first minus second, on the axis of rows and on that of columns."""
    difference = (positions[..., :2] - positions[..., 2:]).to(call.target_dtype)
    if not call.signed:
        difference = difference.abs()
    return difference / difference.new_tensor(call.features.shape[1:3]) if call.normalize else difference


def rows_of(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """[B, m] each: where the first and the second of a pair lie in the flattened map."""
    return positions[..., 0] * width + positions[..., 1], positions[..., 2] * width + positions[..., 3]


def gather(features: Tensor, positions: Tensor) -> Tensor:
    """[B, m, 2C]: the features at the first position, then those at the second; differentiable by autograd."""
    tokens = features.flatten(1, 2)
    image = torch.arange(features.shape[0], device=features.device)[:, None]
    return torch.cat([tokens[image, row] for row in rows_of(positions, features.shape[2])], -1)


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    positions = positions_of(call)
    return gather(call.features, positions), targets_of(call, positions), positions


def backward(call: Scatter) -> Tensor:
    """Each row back to where it came from, pair by pair, first before second: sums in this order, in float32 at least."""
    batch, height, width, channels = call.shape
    dtype = torch.promote_types(call.grad_pairs.dtype, torch.float32)
    grad = torch.zeros(batch, height * width, channels, dtype=dtype, device=call.grad_pairs.device)
    image = torch.arange(batch, device=grad.device)
    rows = rows_of(call.positions, width)
    for pair in range(call.positions.shape[1]):
        for row, part in zip(rows, call.grad_pairs[:, pair].to(dtype).split(channels, 1), strict=True):
            grad[image, row[:, pair]] += part
    return grad.to(call.grad_pairs.dtype).view(call.shape)


BACKEND = Backend("reference", lambda phase, call: None, {"forward": forward, "backward": backward})
