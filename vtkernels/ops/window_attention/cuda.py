"""Window attention on NVIDIA GPUs: the CUDA C++ kernel of csrc/window_attention, a backward for large windows. Other backends compute its forward."""

import functools

import torch
from torch import Tensor

from vtkernels._core import gpu, native
from vtkernels._core.op import Backend
from vtkernels.ops.window_attention.common import LARGEST_TILE, Call

_DTYPES = (torch.bfloat16, torch.float16)
# what one block holds of the multiprocessor's shared memory: kHeadDim, kRows and kSharedBytes of csrc/window_attention/cuda.cu
HEAD_DIM, TOKENS, SHARED_BYTES = 32, 144, 211780


def why_not(phase: str, call: Call) -> str | None:
    device = call.qkv.device
    if device.type != "cuda":
        return f"it runs on CUDA devices, qkv is on {device}"
    major, minor = capability = gpu.capability(device)
    if capability < (8, 0):
        return f"it is compiled for compute capability 8.0 (Ampere) and newer, {device} has {major}.{minor}"
    if (there := _shared_memory_limit(device)) < SHARED_BYTES:
        return f"a block of it needs {SHARED_BYTES} bytes of shared memory, {device} has {there}"
    return why_not_call(phase, call) or native.why_missing() or _why_not_built()


def why_not_call(phase: str, call: Call) -> str | None:
    """Whatever the device."""
    if not LARGEST_TILE < call.tokens <= TOKENS:
        return f"its windows hold {LARGEST_TILE + 1} to {TOKENS} tokens, this call's {call.tokens}"
    if call.qkv.dtype not in _DTYPES:
        return f"it computes in bfloat16 and float16, qkv is {call.qkv.dtype}"
    if call.head_dim != HEAD_DIM:
        return f"its head dimension is {HEAD_DIM}, this call's is {call.head_dim}"
    for name in ("bias", "logit_scale"):
        if getattr(call, name) is not None:
            return f"it takes no {name}"
    if call.dropout_p > 0:
        return "it has no dropout"
    return "it computes the backward only" if phase == "forward" else None


def _why_not_built() -> str | None:
    if torch._C._dispatch_has_kernel_for_dispatch_key("vtkernels_native::window_attention_large_backward", "CUDA"):
        return None
    return "the native library was built without CUDA kernels; install nvcc (12.8 or newer) and reinstall with VTKERNELS_BUILD=cuda"


def backward(call: Call, grad_out: Tensor, out: Tensor | None, statistics: Tensor) -> tuple[Tensor | None, ...]:
    qkv, table, qkv_bias, heads = _dense(call.qkv), call.bias_table, call.qkv_bias, call.num_heads
    d_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if not qkv.shape[0]:
        return d_qkv, *(None if value is None else torch.zeros(value.shape, dtype=torch.float32, device=qkv.device) for value in call[1:5])
    # one block a multiprocessor
    lanes = max(1, min(qkv.shape[0] * call.grid[0] * call.grid[1], _multiprocessors(qkv.device) // heads))
    new = functools.partial(torch.empty, dtype=torch.float32, device=qkv.device)
    d_table = None if table is None else new(lanes, *table.shape)
    # where padded tokens take part, and are what the bias makes them
    padded = qkv_bias is not None and call.padded and not call.mask_padding
    d_values = new(lanes, 2 * call.channels) if padded else None
    torch.ops.vtkernels_native.window_attention_large_backward.default(
        _dense(grad_out), _dense(out), statistics, qkv, _floats(table), _floats(qkv_bias) if padded else None, heads, *call.window, *call.shift,
        call.scale, call.mask_padding, call.shift_first, lanes, d_qkv, d_table, d_values,
    )  # fmt: skip
    d_qkv_bias = None
    if qkv_bias is not None:
        d_qkv_bias = torch.zeros(3 * call.channels, dtype=torch.float32, device=qkv.device)
        if padded:
            # a padded token's output is cut off, so nothing reaches its query
            d_qkv_bias[call.channels :] = d_values.sum(0)
    return d_qkv, None if table is None else d_table.sum(0), None, None, d_qkv_bias


def _dense(x: Tensor) -> Tensor:
    """Contiguous from a multiple of 16 bytes on, as the kernel copies."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _floats(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float().contiguous()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def _shared_memory_limit(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


BACKEND = Backend("cuda", why_not, {"backward": backward})
