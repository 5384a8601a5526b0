"""The other ways to run CaiT's talking-heads attention, between the two projections: (qkv, parameters, heads) -> [B, N, C]."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Peer = Callable[[Tensor, Sequence[Tensor], int], Tensor]


class Unavailable(Exception):
    """Why a peer cannot run here."""


def eager(qkv: Tensor, parameters: Sequence[Tensor], heads: int) -> Tensor:
    """timm 1.0, `TalkingHeadAttn`, line by line; facebookresearch/deit has the same lines."""
    pre_weight, pre_bias, post_weight, post_bias = parameters
    batch, tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    qkv = qkv.reshape(batch, tokens, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0] * (channels // heads) ** -0.5, qkv[1], qkv[2]
    attn = q @ k.transpose(-2, -1)
    attn = F.linear(attn.permute(0, 2, 3, 1), pre_weight, pre_bias).permute(0, 3, 1, 2)
    attn = attn.softmax(dim=-1)
    attn = F.linear(attn.permute(0, 2, 3, 1), post_weight, post_bias).permute(0, 3, 1, 2)
    return (attn @ v).transpose(1, 2).reshape(batch, tokens, channels)


def channels_first(qkv: Tensor, parameters: Sequence[Tensor], heads: int) -> Tensor:
    """The same with the mixing as a product from the left, which spares the permutations of the scores."""
    pre_weight, pre_bias, post_weight, post_bias = parameters
    batch, tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.reshape(batch, tokens, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
    attn = ((q * (channels // heads) ** -0.5) @ k.transpose(-2, -1)).flatten(2)
    attn = torch.baddbmm(pre_bias[:, None], pre_weight.expand(batch, -1, -1), attn).unflatten(2, (tokens, tokens))
    attn = attn.softmax(dim=-1).flatten(2)
    attn = torch.baddbmm(post_bias[:, None], post_weight.expand(batch, -1, -1), attn).unflatten(2, (tokens, tokens))
    return (attn @ v).transpose(1, 2).reshape(batch, tokens, channels)


def inductor(qkv: Tensor, parameters: Sequence[Tensor], heads: int) -> Tensor:
    """torch.compile of timm's lines."""
    return _compiled(eager, qkv.device.type)(qkv, parameters, heads)


def inductor_channels_first(qkv: Tensor, parameters: Sequence[Tensor], heads: int) -> Tensor:
    """torch.compile of the other form."""
    return _compiled(channels_first, qkv.device.type)(qkv, parameters, heads)


_COMPILED: dict[tuple, Peer] = {}


def _compiled(run: Peer, device: str) -> Peer:
    if not torch._dynamo.is_dynamo_supported():
        raise Unavailable("torch.compile does not support this Python or platform")
    # products are chosen while compiling: another precision or thread count wants another program
    key = (run.__name__, device, torch.get_float32_matmul_precision(), torch.get_num_threads())
    if key not in _COMPILED:
        _COMPILED[key] = torch.compile(run, dynamic=False, options={"cpp.threads": torch.get_num_threads()} if device == "cpu" else None)
    return _COMPILED[key]


def forget_compiled() -> None:
    """Or the second shape would be compiled for dynamic sizes, and the ninth not at all."""
    _COMPILED.clear()
    torch.compiler.reset()


PEERS = {peer.__name__: peer for peer in (eager, channels_first, inductor, inductor_channels_first)}
