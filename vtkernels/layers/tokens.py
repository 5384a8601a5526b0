"""Tokens of a map and back, row by row."""

from torch import Tensor


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C]"""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, H W, C] -> [B, C, H, W]"""
    return x.transpose(1, 2).unflatten(2, grid)
