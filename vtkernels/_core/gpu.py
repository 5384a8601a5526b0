"""What GPU backends ask about the device, each answered once; triton itself is imported only by `why_no_triton`."""

import contextlib
import functools
import os
from typing import Any

import torch


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
