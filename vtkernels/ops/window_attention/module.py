"""Swin's attention modules: projection, window attention, projection, under the parameter names of the official models."""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.ops.window_attention.op import window_attention

Pair = int | tuple[int, int]
LARGEST_LOGIT_SCALE = math.log(100.0)


class _WindowAttentionBase(nn.Module):
    """What both generations share: the geometry, the way out, and buffers that published checkpoints carry and nobody needs.

    Subclasses register their parameters themselves, in the official order: optimizer states are indexed by it.
    """

    proj: nn.Linear

    def __init__(self, dim: int, window_size: Pair, num_heads: int, attn_drop: float, proj_drop: float, options: dict[str, Any]):
        super().__init__()
        name = type(self).__name__
        if dim % num_heads:
            check.fail(name, "dim", f"be a multiple of num_heads={num_heads}", dim, "Swin uses 32 channels a head")
        self.dim = dim
        self.window_size = check.pair(name, "window_size", window_size)
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.options = options
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_load_state_dict_pre_hook(_forget_derived_buffers)

    def shift_for(self, height: int, width: int, shift_size: Pair) -> tuple[int, int]:
        """Swin's rule: an axis on which the map is no larger than the window is not shifted."""
        shift = check.pair(type(self).__name__, "shift_size", shift_size)
        return (shift[0] if height > self.window_size[0] else 0, shift[1] if width > self.window_size[1] else 0)

    def _attend(self, qkv: Tensor, shift_size: Pair, **options: Any) -> Tensor:
        x = window_attention(
            qkv,
            num_heads=self.num_heads,
            window_size=self.window_size,
            shift_size=self.shift_for(qkv.shape[1], qkv.shape[2], shift_size),
            dropout_p=self.attn_drop if self.training else 0.0,
            **options,
            **self.options,
        )
        return self.proj_drop(self.proj(x))

    def extra_repr(self) -> str:
        return f"{self.dim}, window_size={self.window_size}, num_heads={self.num_heads}, attn_drop={self.attn_drop}"


class WindowAttention(_WindowAttentionBase):
    """Swin's window attention on a map: [B, H, W, C] -> [B, H, W, C].

    Parameters are named and shaped as in the official model: `qkv`, `proj`, `relative_position_bias_table`. The buffers
    `relative_position_index` and `attn_mask` of published checkpoints are accepted and ignored. Maps the window does
    not divide are padded with zeros before the projection.

    Args:
        dim: channels C.
        window_size: window edge or (rows, columns).
        num_heads: heads; `dim` must be a multiple of it.
        qkv_bias: whether the first projection has a bias.
        qk_scale: multiplies the scores; default (also for 0, as in the official model) head_dim ** -0.5.
        attn_drop: probability of dropping an attention weight in training.
        proj_drop: dropout after the second projection.
        mask_padding, shift_first, backend: as in `vtkernels.window_attention`.
    """

    def __init__(
        self,
        dim: int,
        window_size: Pair,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        mask_padding: bool = False,
        shift_first: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory = {"device": device, "dtype": dtype}
        options = {"mask_padding": mask_padding, "shift_first": shift_first, "backend": backend}
        super().__init__(dim, window_size, num_heads, attn_drop, proj_drop, options)
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, **factory)
        span = (2 * self.window_size[0] - 1) * (2 * self.window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(span, num_heads, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        _initialise_linear(self.qkv)
        _initialise_linear(self.proj)

    def forward(self, x: Tensor, shift_size: Pair = 0) -> Tensor:
        return self._attend(self.qkv(x), shift_size, bias_table=self.relative_position_bias_table, scale=self.scale, qkv_bias=self.qkv.bias)


class WindowAttentionV2(_WindowAttentionBase):
    """SwinV2's window attention on a map: cosine scores, and a position bias computed from log-spaced coordinates.

    Parameters are named and shaped as in the official model: `qkv.weight`, `q_bias`, `v_bias` (keys have none), `proj`,
    `logit_scale`, `cpb_mlp`. Derived buffers of published checkpoints are accepted and ignored.

    Args:
        dim, window_size, num_heads, qkv_bias, attn_drop, proj_drop: as in `WindowAttention`.
        pretrained_window_size: window the position MLP was trained with, if another; 0 for the same.
        mask_padding, shift_first, backend: as in `vtkernels.window_attention`.
    """

    def __init__(
        self,
        dim: int,
        window_size: Pair,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        pretrained_window_size: Pair = 0,
        *,
        mask_padding: bool = False,
        shift_first: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory = {"device": device, "dtype": dtype}
        options = {"mask_padding": mask_padding, "shift_first": shift_first, "backend": backend}
        super().__init__(dim, window_size, num_heads, attn_drop, proj_drop, options)
        self.pretrained_window_size = check.pair("WindowAttentionV2", "pretrained_window_size", pretrained_window_size)
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1, **factory))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512, **factory), nn.ReLU(), nn.Linear(512, num_heads, bias=False, **factory))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **factory)
        self.q_bias = nn.Parameter(torch.empty(dim, **factory)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim, **factory)) if qkv_bias else None
        self.proj = nn.Linear(dim, dim, **factory)
        rows, columns = (2 * size - 1 for size in self.window_size)
        self.register_buffer("relative_coords_table", torch.empty(1, rows, columns, 2, **factory), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.relative_coords_table.copy_(log_spaced_coordinates(self.window_size, self.pretrained_window_size))
        nn.init.constant_(self.logit_scale, math.log(10.0))
        for layer in (self.qkv, self.proj, self.cpb_mlp[0], self.cpb_mlp[2]):
            _initialise_linear(layer)
        if self.q_bias is not None:
            nn.init.zeros_(self.q_bias)
            nn.init.zeros_(self.v_bias)

    def forward(self, x: Tensor, shift_size: Pair = 0) -> Tensor:
        bias = None if self.q_bias is None else torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        logit_scale = self.logit_scale.flatten().clamp(max=LARGEST_LOGIT_SCALE).exp()
        return self._attend(F.linear(x, self.qkv.weight, bias), shift_size, bias_table=self.position_bias(), logit_scale=logit_scale, qkv_bias=bias)

    def position_bias(self) -> Tensor:
        """[(2 Wh - 1)(2 Ww - 1), heads]: the table the MLP stands for."""
        device = self.relative_coords_table.device.type
        # bfloat16 would round the bias, up to 16, by 0.03; the MLP is too small to gain from it
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext():
            return 16.0 * self.cpb_mlp(self.relative_coords_table).flatten(0, -2).sigmoid()


def log_spaced_coordinates(window: tuple[int, int], pretrained: tuple[int, int]) -> Tensor:
    """[1, 2 Wh - 1, 2 Ww - 1, 2]: sign(d) log2(1 + 8 |d|) / 3 of the offsets d, 1 at the edge of the (pretrained) window.

    In float32 and in the official order of operations, as published weights saw them.
    """
    axes = []
    for size, reference in zip(window, pretrained, strict=True):
        offset = torch.arange(-(size - 1), size, dtype=torch.float32) / max((reference or size) - 1, 1)
        axes.append(offset * 8)
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None]
    return offsets.sign() * torch.log2(offsets.abs() + 1.0) / math.log2(8)


def _initialise_linear(layer: nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _forget_derived_buffers(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in ("relative_position_index", "relative_coords_table", "attn_mask", "k_bias"):
        state.pop(prefix + name, None)
