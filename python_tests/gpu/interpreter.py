"""Repairs of Triton's CPU interpreter, for tests: `repair()` after TRITON_INTERPRET=1 is set, before a kernel runs.

Seen in Triton 3.6 and 3.9. The interpreter keeps bfloat16 tensors as their 16-bit patterns, and
- multiplies those patterns as integers in `tl.dot`, without a word;
- truncates float32 to bfloat16 where hardware rounds to nearest even, and makes NaN of tiny values.
Triton 3.6 alone rounds `tl.fma` twice, and cannot loop over a range whose bound is a tensor under NumPy 2.4.
"""

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_create_dot = InterpreterBuilder.create_dot
_convert_float = interpreter._convert_float
_patch_lang_tensor = interpreter._patch_lang_tensor


def repair() -> None:
    InterpreterBuilder.create_dot = _dot
    InterpreterBuilder.create_fma = _fma
    interpreter._convert_float = _convert
    try:
        int(np.array([1]))
    except TypeError:
        interpreter._patch_lang_tensor = _patch_with_index


def _widened(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((np.ascontiguousarray(handle.data).astype(np.uint32) << 16).view(np.float32), tl.float32)


def _dot(self, a, b, d, *options):
    return _create_dot(self, _widened(a), _widened(b), d, *options)


def _fma(self, x, y, z):
    # float64 holds the product of two float32 exactly, so that only the sum rounds
    exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
    return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)


def _convert(data, source, target, rounding):
    if source != tl.float32 or target != tl.bfloat16:
        return _convert_float(data, source, target, rounding)
    values = np.ascontiguousarray(data).view(np.float32)
    bits = values.view(np.uint32)
    nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest_even).astype(np.uint16)


def _patch_with_index(tensor, *scope):
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(np.asarray(self.handle.data).reshape(()))
