"""Swin's attention modules: projection, window attention, projection, under the parameter names of the official models."""

import contextlib
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels._core.autocast import has_autocast
from vtkernels.ops.window_attention.common import Call
from vtkernels.ops.window_attention.op import window_attention
from vtkernels.ops.window_attention.reference import weights

Pair = int | tuple[int, int]
LARGEST_LOGIT_SCALE = math.log(100.0)
# a score this low has weight 0 in every dtype, and float16 can hold it
NEVER = -1e4


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

    def forward(self, x: Tensor, shift_size: Pair = 0) -> Tensor:
        qkv, bias_table, parameters = self._operands(x)
        shift, window, one = self.shift_for(x.shape[1], x.shape[2], shift_size), self.window_size, 1 in self.window_size
        if one:
            qkv, bias_table, window = _two_for_one(qkv, bias_table, window)
        out = window_attention(
            qkv,
            bias_table,
            num_heads=self.num_heads,
            window_size=window,
            shift_size=shift,
            dropout_p=self.attn_drop if self.training else 0.0,
            **parameters,
            **self.options,
        )
        if one:
            out = _unfold(out, self.window_size, x.shape)
        return self.proj_drop(self.proj(out))

    def attention_weights(self, x: Tensor, shift_size: Pair = 0) -> Tensor:
        """[B * windows, h, N, N]: what `forward` weighs the values with, before dropout. Windows of an image follow each other, row by row."""
        qkv, bias_table, parameters = self._operands(x)
        shift = self.shift_for(x.shape[1], x.shape[2], shift_size)
        call = Call(
            qkv=qkv, bias_table=bias_table, bias=None, logit_scale=parameters.get("logit_scale"), qkv_bias=parameters["qkv_bias"],
            num_heads=self.num_heads, window=self.window_size, shift=shift, scale=parameters.get("scale", 1.0),
            mask_padding=self.options["mask_padding"], shift_first=self.options["shift_first"], dropout_p=0.0, seed=0,
        )  # fmt: skip
        return weights(call).flatten(0, 1)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """qkv of the map, the bias table, and what else of the op's arguments the parameters determine."""
        raise NotImplementedError

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

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        return self.qkv(x), self.relative_position_bias_table, {"scale": self.scale, "qkv_bias": self.qkv.bias}


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
        self.register_load_state_dict_post_hook(_restore_coordinates)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _restore_coordinates(self)
        nn.init.constant_(self.logit_scale, math.log(10.0))
        for layer in (self.qkv, self.proj, self.cpb_mlp[0], self.cpb_mlp[2]):
            _initialise_linear(layer)
        if self.q_bias is not None:
            nn.init.zeros_(self.q_bias)
            nn.init.zeros_(self.v_bias)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        bias = None if self.q_bias is None else torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        logit_scale = self.logit_scale.flatten().clamp(max=LARGEST_LOGIT_SCALE).exp()
        return F.linear(x, self.qkv.weight, bias), self.position_bias(), {"logit_scale": logit_scale, "qkv_bias": bias}

    def position_bias(self) -> Tensor:
        """[(2 Wh - 1)(2 Ww - 1), heads]: the table the MLP stands for."""
        device = self.relative_coords_table.device.type
        # bfloat16 would round the bias, up to 16, by 0.03; the MLP is too small to gain from it
        with torch.autocast(device, enabled=False) if has_autocast(device) else contextlib.nullcontext():
            return 16.0 * self.cpb_mlp(self.relative_coords_table).flatten(0, -2).sigmoid()


def _two_for_one(qkv: Tensor, bias_table: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A window of one token on an axis, which the op does not have: the axis joins the batch, and the window's second token is never seen."""
    rows, columns = _folds(window, qkv.shape)
    qkv = rearrange(qkv, "B (fh H) (fw W) C -> (B fh fw) H W C", fh=rows, fw=columns)
    table = bias_table.unflatten(0, (2 * window[0] - 1, 2 * window[1] - 1))
    missing = [int(size == 1) for size in window]
    table = F.pad(table, (0, 0, missing[1], missing[1], missing[0], missing[0]), value=NEVER)
    return qkv, table.flatten(0, 1), (max(window[0], 2), max(window[1], 2))


def _unfold(x: Tensor, window: tuple[int, int], shape: torch.Size) -> Tensor:
    rows, columns = _folds(window, shape)
    return rearrange(x, "(B fh fw) H W C -> B (fh H) (fw W) C", fh=rows, fw=columns)


def _folds(window: tuple[int, int], shape: torch.Size) -> tuple[int, int]:
    return (shape[1] if window[0] == 1 else 1, shape[2] if window[1] == 1 else 1)


def _restore_coordinates(attention: WindowAttentionV2, _: object = None) -> None:
    """No checkpoint holds the coordinates, and a module made on the meta device has them nowhere."""
    table, like = log_spaced_coordinates(attention.window_size, attention.pretrained_window_size), attention.logit_scale
    attention.relative_coords_table = table.to(device=like.device, dtype=like.dtype)


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
