"""What GPU backends ask about the device, each answered once; triton itself is imported only by `why_no_triton`."""

import contextlib
import functools
import os
from typing import Any

import torch
from torch import Tensor


@functools.cache
def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def on(device: torch.device) -> Any:
    """A context in which kernels are launched on the device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@functools.cache
def why_no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except Exception as error:
        return f"triton cannot be imported ({type(error).__name__}: {error}); install the triton that your torch asks for, for example with: pip install triton"
    return None


def product_precision(x: Tensor) -> str:
    """How kernels multiply (triton_parts.py): three TF32 products keep float32's accuracy, one only where the user allowed it."""
    # Turing has no TF32
    if x.device.type == "cuda" and capability(x.device) < (8, 0):
        return "ieee"
    # what allow_tf32 reads too, but without raising when the process mixed torch's old and new switches
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if x.dtype != torch.float32 or allowed else "split tf32"


def tile_edge(n: int) -> int:
    """Edge of the tile for n rows: a power of two that the tensor cores take."""
    return max(16, 1 << (n - 1).bit_length())


def dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
