"""The other ways to run CaiT's class attention, output projection included, as they would stand in a model.

A peer is a function of (x, parameters) -> [B, C], parameters being those of timm's module by name. The first group forms
keys and values, as every published implementation does. The second folds them away in plain PyTorch, as the op does:
what remains of our gain there is the kernel alone.
"""

from collections.abc import Callable

import torch
from peers.window_attention import _compiled
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]
Peer = Callable[[Tensor, Parameters], Tensor]


def _project(x: Tensor, parameters: Parameters, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    q = F.linear(x[:, 0], parameters["q.weight"], parameters["q.bias"]).unsqueeze(1).reshape(batch, 1, heads, channels // heads).permute(0, 2, 1, 3)
    k = F.linear(x, parameters["k.weight"], parameters["k.bias"]).reshape(batch, tokens, heads, channels // heads).permute(0, 2, 1, 3)
    v = F.linear(x, parameters["v.weight"], parameters["v.bias"]).reshape(batch, tokens, heads, channels // heads).permute(0, 2, 1, 3)
    return q, k, v


def _leave(x: Tensor, parameters: Parameters) -> Tensor:
    batch, heads, _, dim = x.shape
    return F.linear(x.transpose(1, 2).reshape(batch, 1, heads * dim), parameters["proj.weight"], parameters["proj.bias"])[:, 0]


def timm(heads: int) -> Peer:
    """timm 1.0's module, fused_attn off."""

    def run(x: Tensor, parameters: Parameters) -> Tensor:
        q, k, v = _project(x, parameters, heads)
        return _leave((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v, parameters)

    return run


def timm_sdpa(heads: int) -> Peer:
    """timm 1.0's module, fused_attn on."""

    def run(x: Tensor, parameters: Parameters) -> Tensor:
        return _leave(F.scaled_dot_product_attention(*_project(x, parameters, heads)), parameters)

    return run


def folded(heads: int) -> Peer:
    """Keys and values folded away, in plain PyTorch: batched products over heads, then over images."""

    def run(x: Tensor, parameters: Parameters) -> Tensor:
        batch, _, channels = x.shape
        dim = channels // heads
        q = F.linear(x[:, 0], parameters["q.weight"], parameters["q.bias"]).view(batch, heads, dim).transpose(0, 1) * dim**-0.5
        directions = torch.bmm(q, parameters["k.weight"].view(heads, dim, channels)).transpose(0, 1)
        mixtures = torch.bmm(torch.bmm(directions, x.mT).softmax(-1), x).transpose(0, 1)
        out = torch.baddbmm(parameters["v.bias"].view(heads, 1, dim), mixtures, parameters["v.weight"].view(heads, dim, channels).mT)
        return F.linear(out.transpose(0, 1).reshape(batch, channels), parameters["proj.weight"], parameters["proj.bias"])

    return run


def inductor(heads: int) -> Peer:
    """torch.compile of timm's module."""
    return _compiled(timm(heads), "cpu")


def inductor_sdpa(heads: int) -> Peer:
    """torch.compile of timm's module with SDPA."""
    return _compiled(timm_sdpa(heads), "cpu")


def inductor_folded(heads: int) -> Peer:
    """torch.compile of the folded form."""
    return _compiled(folded(heads), "cpu")


STANDARD = {peer.__name__: peer for peer in (timm, timm_sdpa, inductor, inductor_sdpa)}
FOLDED = {peer.__name__: peer for peer in (folded, inductor_folded)}
PEERS = STANDARD | FOLDED
