"""Tokens of a map and back, row by row, and learned tokens beside them."""

import torch
from torch import Tensor, nn

from vtkernels._core import check


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C]"""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, H W, C] -> [B, C, H, W]"""
    return x.transpose(1, 2).unflatten(2, grid)


def prepend_tokens(x: Tensor, *tokens: Tensor | None) -> Tensor:
    """Learned tokens [1, n, C] before the tokens [B, N, C] of every image, in this order; None adds nothing."""
    learned = [token.expand(x.shape[0], -1, -1) for token in tokens if token is not None]
    return torch.cat((*learned, x), 1) if learned else x


class ClassToken(nn.Module):
    """A learned token put before the patches [B, N, C], which attends to them in every block and is all the head reads (ViT).

    The positions have a row for it, the first. Keep it out of weight decay.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return prepend_tokens(x, self.cls_token)


class DistillationToken(nn.Module):
    """A second learned token, put behind the class token of [B, 1 + N, C]: a head of its own reads it and learns from a teacher (DeiT).

    In training both heads' logits go to `losses.DeitDistillationLoss`; in evaluation the prediction is the mean of the two. Keep it out
    of weight decay.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.dist_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if not x.shape[1]:
            check.fail("DistillationToken", "x", "start with the class token", list(x.shape), "put ClassToken before this layer")
        return torch.cat((x[:, :1], prepend_tokens(x[:, 1:], self.dist_token)), 1)
