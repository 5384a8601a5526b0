"""Shifted-window attention as plain tensor algebra: the specification every backend is held to, forward and backward.

Any floating dtype; `attend` is differentiable by autograd. Letters: B batch, H W map, C channels, h heads, D head
dimension, N tokens of a window, w windows of an image.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core.op import Backend
from vtkernels._core.philox import keep_threshold, philox
from vtkernels.ops.window_attention.common import Call, statistics_shape

MASK = -100.0  # finite: published weights were trained with it
EPSILON = 1e-12  # smallest norm a cosine-attention row is divided by


def to_windows(x: Tensor, call: Call) -> Tensor:
    """[B, H, W, C] -> [B, w, N, C]: pad with zeros at the bottom and right, shift cyclically, cut into windows."""
    (grid_h, grid_w), (window_h, window_w) = call.grid, call.window
    back = (-call.shift[0], -call.shift[1])
    if call.shift_first:
        x = x.roll(back, (1, 2))
    x = F.pad(x, (0, 0, 0, grid_w * window_w - x.shape[2], 0, grid_h * window_h - x.shape[1]))
    if not call.shift_first:
        x = x.roll(back, (1, 2))
    return rearrange(x, "B (gh wh) (gw ww) C -> B (gh gw) (wh ww) C", wh=window_h, ww=window_w)


def from_windows(x: Tensor, call: Call) -> Tensor:
    """[B, w, N, C] -> [B, H, W, C]: the inverse of `to_windows`; the padding is cut off."""
    (grid_h, _), (window_h, window_w), (_, height, width, _) = call.grid, call.window, call.qkv.shape
    x = rearrange(x, "B (gh gw) (wh ww) C -> B (gh wh) (gw ww) C", gh=grid_h, wh=window_h, ww=window_w)
    if call.shift_first:
        return x[:, :height, :width].roll(call.shift, (1, 2))
    return x.roll(call.shift, (1, 2))[:, :height, :width]


def real_tokens(call: Call) -> Tensor:
    """[w, N] bool: False where a token is padding."""
    return to_windows(call.qkv.new_ones(1, *call.qkv.shape[1:3], 1), call)[0, :, :, 0] > 0


def relative_index(window: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """[N, N] rows of the bias table: (query - key) offsets, made non-negative, row offset major."""
    y, x = (t.flatten() for t in torch.meshgrid(*(torch.arange(size, device=device) for size in window), indexing="ij"))
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window[0] - 1) * (2 * window[1] - 1) + dx + window[1] - 1


def additive_mask(call: Call) -> Tensor | None:
    """[w, 1, N, N]: MASK between tokens the shift brought together, -inf on padded keys where they take no part."""
    mask = None
    if any(call.shift):
        rows, columns = (_bands(*axis, call.qkv.device) for axis in zip(call.grid, call.window, call.shift, strict=True))
        region = rearrange(3 * rows[:, None] + columns, "(gh wh) (gw ww) -> (gh gw) (wh ww)", wh=call.window[0], ww=call.window[1])
        mask = MASK * (region[:, :, None] != region[:, None, :]).to(call.qkv.dtype)[:, None]
    if call.mask_padding and call.padded:
        mask = (0.0 if mask is None else mask) + torch.where(real_tokens(call), 0.0, -torch.inf).to(call.qkv.dtype)[:, None, None, :]
    return mask


def _bands(count: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Which of the three bands of the shifted axis a position lies in: the body, the last window's kept or wrapped part."""
    position = torch.arange(count * size, device=device)
    return (position >= (count - 1) * size).long() + (position >= count * size - shift).long()


def keep_factor(call: Call) -> Tensor:
    """[B, w, h, N, N]: 0 for a dropped probability, 1 / (1 - p) for a kept one."""
    batch, windows, heads, tokens = call.qkv.shape[0], call.grid[0] * call.grid[1], call.num_heads, call.tokens
    device = call.qkv.device
    item = torch.arange(batch * windows * heads, device=device).view(batch, windows, heads, 1, 1)
    element = torch.arange(tokens * tokens, device=device).view(tokens, tokens)
    words = philox(call.seed, *torch.broadcast_tensors(element, item & 0xFFFFFFFF, item >> 32, torch.zeros_like(item)))[0]
    return (words < keep_threshold(call.dropout_p)).to(call.qkv.dtype) / (1.0 - call.dropout_p)


def _normalise(x: Tensor) -> Tensor:
    # float16 has no EPSILON: a row of zeros would become 0 / 0
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # the norm of a row of zeros has no second derivative, so it is not taken
    zeros = (wide == 0).all(-1, keepdim=True)
    norm = wide.masked_fill(zeros, 1.0).norm(dim=-1, keepdim=True).masked_fill(zeros, 0.0)
    return (wide / norm.clamp_min(EPSILON)).to(x.dtype)


def _scores(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per window and head: q and k as they enter the product (scaled, or normalised), v, and the scores S."""
    tokens = to_windows(call.qkv, call)
    if call.qkv_bias is not None:
        tokens = torch.where(real_tokens(call)[..., None], tokens, call.qkv_bias.to(tokens.dtype))
    q, k, v = rearrange(tokens, "B w N (three h D) -> three B w h N D", three=3, h=call.num_heads)
    if call.logit_scale is None:
        q = q * call.scale
    else:
        q = _normalise(q) * (call.logit_scale.to(q.dtype) * call.scale)[:, None, None]
        k = _normalise(k)
    scores = q @ k.mT
    if call.bias_table is not None:
        scores = scores + rearrange(call.bias_table[relative_index(call.window, call.qkv.device)], "i j h -> h i j").to(scores.dtype)
    if call.bias is not None:
        scores = scores + call.bias.to(scores.dtype)
    mask = additive_mask(call)
    return q, k, v, scores if mask is None else scores + mask


def weights(call: Call) -> Tensor:
    """[B, w, h, N, N]: what each token of a window gives the others' values, before dropout."""
    return _scores(call)[3].softmax(-1)


def attend(call: Call) -> Tensor:
    """The op: [B, H, W, 3C] -> [B, H, W, C]."""
    _, _, v, scores = _scores(call)
    probabilities = scores.softmax(-1)
    if call.dropout_p > 0:
        probabilities = probabilities * keep_factor(call)
    return from_windows(rearrange(probabilities @ v, "B w h N D -> B w N (h D)"), call)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    statistics = call.qkv.new_empty(statistics_shape(call), dtype=torch.promote_types(call.qkv.dtype, torch.float32))
    if statistics.numel():
        # of unrounded scores: another backend may recompute them in this precision for the backward
        scores = _scores(call._replace(qkv=call.qkv.to(statistics.dtype)))[3]
        statistics[0] = scores.amax(-1)
        statistics[1] = 1.0 / (scores - statistics[0][..., None]).exp().sum(-1)
    return attend(call).contiguous(), statistics


def backward(call: Call, grad_out: Tensor, out: Tensor | None, statistics: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of qkv, bias_table, bias, logit_scale and qkv_bias; None for what the call does not have."""
    q, k, v, scores = _scores(call)
    probabilities = scores.softmax(-1)
    keep = keep_factor(call) if call.dropout_p > 0 else None
    d_o = rearrange(to_windows(grad_out, call), "B w N (h D) -> B w h N D", h=call.num_heads)

    d_v = (probabilities if keep is None else probabilities * keep).mT @ d_o
    d_p = d_o @ v.mT
    if keep is not None:
        d_p = d_p * keep
    d_s = probabilities * (d_p - (probabilities * d_p).sum(-1, keepdim=True))
    d_q, d_k = d_s @ k, d_s.mT @ q  # q carries the scale: d_k is complete, d_q lacks it

    d_logit_scale = None
    if call.logit_scale is None:
        d_q = d_q * call.scale
    else:
        d_q, d_k, d_logit_scale = _through_normalisation(call, d_q, d_k, q, k)
    d_tokens = rearrange(torch.stack((d_q, d_k, d_v)), "three B w h N D -> B w N (three h D)")

    d_bias = d_s.sum((0, 1)) if call.bias is not None or call.bias_table is not None else None
    d_table = None
    if call.bias_table is not None:
        index = relative_index(call.window, call.qkv.device).flatten()
        d_table = d_bias.new_zeros(call.bias_table.shape).index_add(0, index, rearrange(d_bias, "h i j -> (i j) h"))
    d_qkv_bias = None
    if call.qkv_bias is not None:
        d_qkv_bias = d_tokens.masked_fill(real_tokens(call)[..., None], 0.0).sum((0, 1, 2))
    return from_windows(d_tokens, call).contiguous(), d_table, d_bias if call.bias is not None else None, d_logit_scale, d_qkv_bias


def _through_normalisation(call: Call, d_q: Tensor, d_k: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine attention: from gradients of the normalised rows to gradients of the rows and of the logit scale."""
    tokens = to_windows(call.qkv, call)
    if call.qkv_bias is not None:
        tokens = torch.where(real_tokens(call)[..., None], tokens, call.qkv_bias.to(tokens.dtype))
    raw_q, raw_k, _ = rearrange(tokens, "B w N (three h D) -> three B w h N D", three=3, h=call.num_heads)
    unit_q = _normalise(raw_q)
    d_logit_scale = (unit_q * d_q).sum((0, 1, 3, 4)) * call.scale
    d_unit_q = d_q * (call.logit_scale.to(q.dtype) * call.scale)[:, None, None]
    return _project(d_unit_q, unit_q, raw_q), _project(d_k, k, raw_k), d_logit_scale


def _project(d_unit: Tensor, unit: Tensor, raw: Tensor) -> Tensor:
    """Gradient through x / max(|x|, eps): its part along x vanishes, except where the norm was clamped."""
    norm = raw.to(torch.promote_types(raw.dtype, torch.float32)).norm(dim=-1, keepdim=True)
    along = (unit * d_unit).sum(-1, keepdim=True) * (norm > EPSILON)
    return ((d_unit - unit * along) / norm.clamp_min(EPSILON)).to(raw.dtype)


BACKEND = Backend("reference", lambda phase, call: None, {"forward": forward, "backward": backward})
