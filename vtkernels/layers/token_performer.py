"""The tokenizer's linear-time attention of T2T-ViT and ViTAE.

Yuan et al., "Tokens-to-Token ViT", 2021; random features after Choromanski et al., "Rethinking Attention with Performers", 2020.
"""

import math

import torch
from torch import Tensor, nn

from vtkernels.layers.autocast import without_autocast

EPSILON = 1e-8


class Dropout(nn.Dropout):
    """torch's, whose own backward tells compilers other strides than it has where the gradient comes transposed, as from `unfold`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = 1.0 - self.p
        return x * torch.empty_like(x).bernoulli_(keep).div_(keep)


class TokenPerformer(nn.Module):
    """[B, N, dim] -> [B, N, width]: attention of one head through positive random features, then a small MLP.

    Input and output differ in width, so the values themselves are the shortcut around the attention. `w`, the features'
    directions, is drawn once and never trained. Parameters are named as in the official code; `kqv` lays out keys first.
    `beside`, in ViTAE, is what a parallel branch made of the same input; it joins before the MLP.
    """

    def __init__(self, dim: int, width: int, dropout: float = 0.1, eps: float = 1e-5):
        super().__init__()
        features = width // 2
        self.w = nn.Parameter(torch.empty(features, width), requires_grad=False)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.kqv = nn.Linear(dim, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = Dropout(dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), Dropout(dropout))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.w, gain=math.sqrt(self.w.shape[0]))

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        x = v + self.drop(self.proj(self._attend(self.features(q), self.features(k), v)))
        x = x if beside is None else x + beside
        return x + self.mlp(self.norm2(x))

    def features(self, t: Tensor) -> Tensor:
        """[B, N, features]: exp(t w - |t|^2 / 2), whose products estimate exp(t . s). In float32: half precision overflows."""
        with without_autocast(t):
            t = t.to(torch.promote_types(t.dtype, torch.float32))
            exponent = t @ self.w.to(t.dtype).mT - t.square().sum(-1, keepdim=True) / 2
            return exponent.exp() / math.sqrt(self.w.shape[0])

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with without_autocast(v):
            total = q @ k.sum(1, keepdim=True).mT
            return (q @ (k.mT @ v.to(k.dtype)) / (total + EPSILON)).to(v.dtype)

    def attention_weights(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """[B, 1, N, N]: what `forward` weighs the values with, although it never forms it."""
        k, q, _ = self.kqv(self.norm1(x)).chunk(3, -1)
        scores = self.features(q) @ self.features(k).mT
        return (scores / (scores.sum(-1, keepdim=True) + EPSILON))[:, None]
