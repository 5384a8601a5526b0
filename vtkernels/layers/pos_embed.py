"""Position embeddings: fixed ones, and learned ones carried over to another grid."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 0, mode: str = "bicubic") -> Tensor:
    """[1, prefix + H W, D] to a new grid: the rows of class and distillation tokens stay, the rest is interpolated as an image."""
    if tuple(old_grid) == tuple(new_grid):
        return table
    tokens, grid = table[:, :prefix], table[:, prefix:]
    image = grid.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image.float(), size=tuple(new_grid), mode=mode, align_corners=False).to(table.dtype)
    return torch.cat((tokens, image.permute(0, 2, 3, 1).flatten(1, 2)), 1)


def sin_cos_positions(count: int, dim: int) -> Tensor:
    """[1, count, dim]: sine in the even and cosine in the odd channels of p / 10000^(2 floor(j/2) / dim)."""
    position = torch.arange(count, dtype=torch.float64)[:, None]
    channel = torch.arange(dim)
    angle = position / 10000.0 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())[None].to(torch.get_default_dtype())


def carry_positions(state: dict[str, Tensor], name: str, grid: tuple[int, int], prefix: int = 0) -> list[str]:
    """Resize the table `name` of a state dict in place, if it is another square grid's; the names of what changed."""
    table = state.get(name)
    if table is None or table.dim() != 3 or table.shape[1] == prefix + grid[0] * grid[1]:
        return []
    count = table.shape[1] - prefix
    side = math.isqrt(max(count, 0))
    if side == 0 or side * side != count:
        return []
    state[name] = resize_positions(table, (side, side), grid, prefix)
    return [name]
