"""Loading of the native library, once, remembering why it is not there when it is not."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from vtkernels._core import env

LIBRARY = Path(__file__).parent.parent / "_native.so"


@functools.cache
def why_missing() -> str | None:
    """Load the native library on the first call; None if it is there, else the reason in a sentence."""
    if not env.native_enabled():
        return "the native library is switched off by VTKERNELS_NATIVE=0"
    if env.isa_limit() not in env.ISA_NAMES:
        return f"VTKERNELS_ISA must be one of {', '.join(env.ISA_NAMES)}, got {env.isa_limit()!r}; unset it for the best this CPU has"
    if not LIBRARY.exists():
        return "the native library was not built; install a C++ compiler and reinstall with VTKERNELS_BUILD=cpu"
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"the native library failed to load ({error}); reinstall with VTKERNELS_BUILD=cpu"
    return None


def empty(shape: int | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """torch.empty for a kernel to write to: the kernels know nothing of torch's default dtype and device, which a caller may have changed."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def zeros(shape: int | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """As `empty`."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


@functools.cache
def isa() -> str:
    """The instruction set the native kernels run with on this machine, after VTKERNELS_ISA."""
    reason = why_missing()
    return f"none: {reason}" if reason else torch.ops.vtkernels_native.isa()
