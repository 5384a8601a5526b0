"""Window attention on NVIDIA GPUs: the launchers of the Triton kernels. Triton itself is imported by the first call that runs."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels._core import gpu
from vtkernels._core.op import Backend
from vtkernels._core.philox import keep_threshold
from vtkernels.ops.window_attention.common import LARGEST_TILE, Call, statistics_shape
from vtkernels.ops.window_attention.triton_tuning import tuned_plan

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST_WINDOW = 24
_LARGEST_HEAD = 256


def why_not(phase: str, call: Call) -> str | None:
    qkv = call.qkv
    if not (qkv.device.type == "cuda" or qkv.device.type == "cpu" and gpu.interpreted()):
        return f"it runs on CUDA devices, qkv is on {qkv.device}"
    if qkv.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, qkv is {qkv.dtype}"
    if max(call.window) > _LARGEST_WINDOW:
        return f"its windows are at most {_LARGEST_WINDOW} x {_LARGEST_WINDOW}, this call's is {call.window[0]} x {call.window[1]}"
    if call.head_dim > _LARGEST_HEAD:
        return f"its head dimensions are at most {_LARGEST_HEAD}, this call's is {call.head_dim}"
    if qkv.device.type == "cuda":
        major, minor = capability = gpu.capability(qkv.device)
        if capability < (7, 5):
            return f"it needs compute capability 7.5 (Turing) or newer, {qkv.device} has {major}.{minor}"
        if qkv.dtype == torch.bfloat16 and capability < (8, 0):
            return f"bfloat16 needs compute capability 8.0 (Ampere) or newer, {qkv.device} has {major}.{minor}; float16 runs"
        needed, there = _shared_memory(phase, call), _shared_memory_limit(qkv.device)
        if needed > there:
            return f"head dimension {call.head_dim} needs {needed} bytes of shared memory in the {phase}, {qkv.device} has {there}"
    return gpu.why_no_triton()


def forward(call: Call, plan: "Plan | None" = None) -> tuple[Tensor, Tensor]:
    qkv = gpu.dense_last(call.qkv)
    out = torch.empty((*qkv.shape[:3], call.channels), dtype=qkv.dtype, device=qkv.device)
    statistics = torch.empty(statistics_shape(call), dtype=torch.float32, device=qkv.device)
    if qkv.shape[0] and statistics.numel():
        _large_forward(call, plan or tuned_plan("forward", call, large_plan), qkv, out, statistics)
    elif qkv.shape[0]:
        _small_forward(call, plan or tuned_plan("forward", call, small_plan), qkv, out)
    return out, statistics


def backward(call: Call, grad_out: Tensor, out: Tensor | None, statistics: Tensor, plan: "Plan | None" = None) -> tuple[Tensor | None, ...]:
    qkv, grad_out = gpu.dense_last(call.qkv), gpu.dense_last(grad_out)
    d_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if not qkv.shape[0]:
        return d_qkv, *(None if value is None else torch.zeros(value.shape, dtype=torch.float32, device=qkv.device) for value in call[1:5])
    if statistics.numel():
        return d_qkv, *_large_backward(call, plan or tuned_plan("backward", call, large_plan), qkv, grad_out, out, statistics, d_qkv)
    return d_qkv, *_small_backward(call, plan or tuned_plan("backward", call, small_plan), qkv, grad_out, d_qkv)


class Plan(NamedTuple):
    """How a kernel is launched. `programs` is how many of them should share the work of all heads."""

    programs: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None

    def share(self, items: int, heads: int) -> int:
        """Items of each program, such that the heads' programs together come close to `programs`."""
        lanes = max(1, min(items, self.programs // heads))
        return -(-items // lanes)

    @property
    def options(self) -> dict[str, Any]:
        # Triton is about to switch the contraction of multiply and add off by default
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options if self.maxnreg is None else {**options, "maxnreg": self.maxnreg}


def small_plan(phase: str, call: Call) -> Plan:
    """Choices read off the machine code that the static gate builds; the gate holds what they reach."""
    block, half = gpu.tile_edge(call.tokens), call.qkv.dtype != torch.float32
    # One warp for each 16 rows of the score tile: more would repeat the softmax, fewer would spill. Rows of 128 and
    # more need the registers of twice as many.
    num_warps = block // 16 * (1 if call.head_dim < 128 else 2)
    draws, forward = call.dropout_p > 0, phase == "forward"
    # Resident programs of a multiprocessor with four warps: 2 in the backward, in the forward 4, or 3 where it draws numbers
    resident = 2 if not (forward and half) else 3 if draws else 4
    # The gather of the position bias would take every register there is; the loop that follows it does not need them
    bounded = forward and half and call.head_dim <= 32 and torch.version.hip is None
    maxnreg = (168 if draws else 128) if bounded else None
    # Two stages hold up to 80 KiB, which Turing does not have, and their addresses the registers that values of padding
    # and drawn numbers need
    crowded = draws or not forward and _padding(call) == "value"
    fits_twice = call.head_dim <= (64 if half else 32) and not crowded and _shared_memory_limit(call.qkv.device) > 80 * 1024
    return Plan(_multiprocessors(call.qkv.device) * max(1, resident * 4 // num_warps), num_warps, 2 if fits_twice else 1, maxnreg)


def large_plan(phase: str, call: Call) -> Plan:
    # Pipelining of the tiles' loops would send the gathered position bias, word by word, through shared memory
    stages = 2 if phase == "forward" and _rows_fit(call) and _shared_memory_limit(call.qkv.device) > 80 * 1024 else 1
    return Plan(_multiprocessors(call.qkv.device) * 2, num_warps=4, num_stages=stages)


def _small_forward(call: Call, plan: Plan, qkv: Tensor, out: Tensor) -> None:
    from vtkernels.ops.window_attention.triton_small import window_attention_small_fwd_kernel as kernel

    items = qkv.shape[0] * call.grid[0] * call.grid[1]
    share = plan.share(items, call.num_heads)
    grid = (call.num_heads * -(-items // share),)
    with gpu.on(qkv.device):
        kernel[grid](
            qkv, out, *_parameters(call, qkv), *_geometry(call, qkv), out.stride(0), *_bias_strides(call), *_scalars(call), share,
            **_constants(call, qkv), BLOCK_N=gpu.tile_edge(call.tokens), STAGES=plan.num_stages, **plan.options,
        )  # fmt: skip


def _small_backward(call: Call, plan: Plan, qkv: Tensor, grad_out: Tensor, d_qkv: Tensor) -> tuple[Tensor | None, ...]:
    from vtkernels.ops.window_attention.triton_small import window_attention_small_bwd_kernel as kernel

    items = qkv.shape[0] * call.grid[0] * call.grid[1]
    share = plan.share(items, call.num_heads)
    lanes = -(-items // share)
    block, heads = gpu.tile_edge(call.tokens), call.num_heads
    new = functools.partial(torch.empty, dtype=torch.float32, device=qkv.device)
    d_bias = new(lanes, heads, block, block) if _bias_kind(call) != "none" else None
    d_logit_scale = new(lanes, heads) if call.logit_scale is not None else None
    d_values = new(lanes, 2 * call.channels) if _padding(call) == "value" else None
    with gpu.on(qkv.device):
        kernel[(heads * lanes,)](
            qkv, grad_out, d_qkv, *_parameters(call, qkv), *(qkv if part is None else part for part in (d_bias, d_logit_scale, d_values)),
            *_geometry(call, qkv), *grad_out.stride()[:3], d_qkv.stride(0), *_bias_strides(call), *_scalars(call), share,
            **_constants(call, qkv, grad_out), BLOCK_N=block, STAGES=plan.num_stages, **plan.options,
        )  # fmt: skip
    return _finish(call, d_bias, d_logit_scale, d_values)


def _large_forward(call: Call, plan: Plan, qkv: Tensor, out: Tensor, statistics: Tensor) -> None:
    if _rows_fit(call):
        return _rows_forward(call, plan, qkv, out, statistics)
    from vtkernels.ops.window_attention.triton_large import window_attention_large_fwd_kernel as kernel

    rows, columns = _large_tile(call)
    with gpu.on(qkv.device):
        kernel[(_tile_programs(call, rows),)](
            qkv, out, statistics, *_parameters(call, qkv), *_geometry(call, qkv), out.stride(0), *_bias_strides(call), *_scalars(call),
            **_constants(call, qkv), ROWS=rows, COLUMNS=columns, STAGES=plan.num_stages, **plan.options,
        )  # fmt: skip


def _rows_fit(call: Call) -> bool:
    """Whether rows of scores and of what is added to them fit in registers."""
    return call.tokens <= 160 and call.head_dim <= 32 and call.qkv.dtype != torch.float32 and call.dropout_p == 0


def _rows_forward(call: Call, plan: Plan, qkv: Tensor, out: Tensor, statistics: Tensor) -> None:
    from vtkernels.ops.window_attention.triton_rows import window_attention_rows_fwd_kernel as kernel

    rows, items = 64, qkv.shape[0] * call.grid[0] * call.grid[1]
    columns = min(128, gpu.tile_edge(call.tokens))
    tiles, rest = -(-call.tokens // rows), call.tokens - columns
    share = plan.share(items, call.num_heads * tiles)
    constants = {name: value for name, value in _constants(call, qkv).items() if name != "DROPOUT"}
    with gpu.on(qkv.device):
        kernel[(call.num_heads * tiles * -(-items // share),)](
            qkv, out, statistics, *_parameters(call, qkv), *_geometry(call, qkv), out.stride(0), *_bias_strides(call), call.scale, share,
            **constants, ROWS=rows, COLUMNS=columns, REST=gpu.tile_edge(rest) if rest > 0 else 0, STAGES=plan.num_stages, **plan.options,
        )  # fmt: skip


def _large_backward(call: Call, plan: Plan, qkv: Tensor, grad_out: Tensor, out: Tensor, statistics: Tensor, d_qkv: Tensor) -> tuple[Tensor | None, ...]:
    from vtkernels.ops.window_attention import triton_large as kernels

    (rows, columns), heads = _large_tile(call), call.num_heads
    programs = _tile_programs(call, rows)
    new = functools.partial(torch.empty, dtype=torch.float32, device=qkv.device)
    delta = new(statistics.shape[1:])
    d_logit_scale = new(programs // heads, heads, rows) if call.logit_scale is not None else None
    d_values = new(programs // heads, 2 * call.channels) if _padding(call) == "value" else None
    d_bias = None
    parameters, geometry, grad_strides = _parameters(call, qkv), _geometry(call, qkv), grad_out.stride()[:3]
    scalars = *_bias_strides(call), *_scalars(call)
    options = {**_constants(call, qkv, grad_out), "ROWS": rows, "COLUMNS": columns, "STAGES": plan.num_stages, **plan.options}
    with gpu.on(qkv.device):
        kernels.window_attention_large_bwd_query_kernel[(programs,)](
            qkv, grad_out, out, d_qkv, statistics, delta, *parameters, qkv if d_logit_scale is None else d_logit_scale,
            *geometry, *grad_strides, out.stride(0), d_qkv.stride(0), *scalars, **options,
        )  # fmt: skip
        kernels.window_attention_large_bwd_key_kernel[(programs,)](
            qkv, grad_out, d_qkv, statistics, delta, *parameters, qkv if d_values is None else d_values,
            *geometry, *grad_strides, d_qkv.stride(0), *scalars, **options,
        )  # fmt: skip
        if _bias_kind(call) != "none":
            items = qkv.shape[0] * call.grid[0] * call.grid[1]
            rows, columns = _bias_tile(call)
            query_tiles, key_tiles = -(-call.tokens // rows), -(-call.tokens // columns)
            share = plan.share(items, heads * query_tiles * key_tiles)
            lanes = -(-items // share)
            d_bias = new(lanes, heads, query_tiles * rows, key_tiles * columns)
            kernels.window_attention_large_bwd_bias_kernel[(lanes * query_tiles * key_tiles * heads,)](
                qkv,
                grad_out,
                statistics,
                delta,
                *parameters,
                d_bias,
                *geometry,
                *grad_strides,
                *scalars,
                share,
                **options | {"ROWS": rows, "COLUMNS": columns},
            )
    return _finish(call, d_bias, None if d_logit_scale is None else d_logit_scale.sum(2), d_values)


def _large_tile(call: Call) -> tuple[int, int]:
    """Rows of a large window's tiles and columns of the tiles walked, read off the machine code: no spills, little padding."""
    half = call.qkv.dtype != torch.float32
    rows = 64 if call.head_dim <= (64 if half else 32) else 32
    # the two parts of each TF32 operand take the registers of twice the columns
    wide = half and call.head_dim <= 128 and call.tokens % 32 not in range(1, 17)
    return rows, 32 if wide else 16


def _bias_tile(call: Call) -> tuple[int, int]:
    """The same where one pair of tiles stays: its sums take registers, but its position bias is gathered once."""
    rows, columns = _large_tile(call)
    if rows < 64:
        return rows, columns
    return rows, 64 if call.qkv.dtype != torch.float32 and call.head_dim <= 32 and call.dropout_p == 0 else 32


def _tile_programs(call: Call, rows: int) -> int:
    return call.qkv.shape[0] * call.grid[0] * call.grid[1] * call.num_heads * -(-call.tokens // rows)


def _finish(call: Call, d_bias: Tensor | None, d_logit_scale: Tensor | None, d_values: Tensor | None) -> tuple[Tensor | None, ...]:
    """The parameters' gradients from the programs' sums, which `Tensor.sum` adds in a fixed order."""
    d_table = None
    if d_bias is not None:
        d_bias = d_bias.sum(0)
        if call.bias_table is not None:
            d_table, d_bias = _fold_bias(call, d_bias), None
        else:
            d_bias = d_bias[:, : call.tokens, : call.tokens].contiguous()
    d_qkv_bias = None
    if call.qkv_bias is not None:
        d_qkv_bias = torch.zeros(3 * call.channels, dtype=torch.float32, device=call.qkv.device)
        if d_values is not None:
            # a padded token's output is cut off, so nothing reaches its query
            d_qkv_bias[call.channels :] = d_values.sum(0)
    return d_table, d_bias, None if d_logit_scale is None else d_logit_scale.sum(0), d_qkv_bias


def _fold_bias(call: Call, d_bias: Tensor) -> Tensor:
    from vtkernels.ops.window_attention.triton_small import fold_bias_kernel as kernel

    d_table = torch.empty(call.bias_table.shape, dtype=torch.float32, device=d_bias.device)
    with gpu.on(d_bias.device):
        kernel[(d_table.numel(),)](d_bias, d_table, call.num_heads, *d_bias.stride()[:2], *call.window, BLOCK=gpu.tile_edge(call.tokens))
    return d_table


def _shared_memory(phase: str, call: Call) -> int:
    """Bytes of the largest kernel, an upper bound read off its builds for Ampere; newer ones take more, and have it."""
    block, width = gpu.tile_edge(min(call.tokens, LARGEST_TILE)), gpu.tile_edge(call.head_dim)
    if call.qkv.dtype == torch.float32:
        return 8 * block * (block + width)
    return (8 if phase == "backward" else 6) * block * width


def _parameters(call: Call, absent: Tensor) -> tuple[Tensor, ...]:
    """Bias, logit scale and qkv bias, each dense; any tensor stands in for an absent one, which the kernel does not touch."""
    bias = call.bias_table if call.bias_table is not None else call.bias
    if call.bias_table is not None and call.tokens > LARGEST_TILE:
        bias = bias.t()
    values = (bias, call.logit_scale, call.qkv_bias)
    return tuple(absent if value is None else value.contiguous() for value in values)


def _geometry(call: Call, qkv: Tensor) -> tuple[int, ...]:
    batch, height, width, _ = qkv.shape
    period = (height, width) if call.shift_first else tuple(count * size for count, size in zip(call.grid, call.window, strict=True))
    roll = tuple(shift % length for shift, length in zip(call.shift, period, strict=True))
    return batch, height, width, call.num_heads, *call.grid, *period, *roll, *call.shift, *qkv.stride()[:3]


def _bias_strides(call: Call) -> tuple[int, int]:
    """Elements from one entry of a head's bias to the next, and from one head to the next."""
    if call.bias_table is None:
        return 1, call.tokens**2
    return (call.num_heads, 1) if call.tokens <= LARGEST_TILE else (1, call.bias_table.shape[0])


def _scalars(call: Call) -> tuple:
    return call.scale, call.seed, keep_threshold(call.dropout_p), 1.0 / (1.0 - call.dropout_p)


def _constants(call: Call, *maps: Tensor) -> dict[str, Any]:
    return {
        "WINDOW_H": call.window[0],
        "WINDOW_W": call.window[1],
        "HEAD_DIM": call.head_dim,
        "BLOCK_D": gpu.tile_edge(call.head_dim),
        "BIAS": _bias_kind(call),
        "COSINE": call.logit_scale is not None,
        "DROPOUT": call.dropout_p > 0,
        "PADDING": _padding(call),
        "WIDE": any(x.shape[1] * x.stride(1) + x.shape[2] * x.stride(2) >= 2**31 for x in maps),
        "PRECISION": _precision(call),
    }


def _bias_kind(call: Call) -> str:
    if call.bias_table is not None:
        return "table"
    return "none" if call.bias is None else "dense"


def _padding(call: Call) -> str:
    if not call.padded:
        return "none"
    if call.mask_padding:
        return "masked"
    return "zeros" if call.qkv_bias is None else "value"


def _precision(call: Call) -> str:
    precision = gpu.product_precision(call.qkv)
    # whole windows of wider heads have no room in shared memory for both parts of every operand; Triton makes them one at a time
    crowded = call.tokens <= LARGEST_TILE and call.head_dim > 32
    return "tf32x3" if crowded and precision == "split tf32" else precision


@functools.cache
def _shared_memory_limit(device: torch.device) -> int:
    """Bytes that one block may have; the interpreter and builds for other devices are not held to any."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else 1 << 30


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


BACKEND = Backend("triton", why_not, {"forward": forward, "backward": backward})
