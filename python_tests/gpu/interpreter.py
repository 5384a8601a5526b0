"""Repairs of Triton's CPU interpreter, for tests: `repair()` after TRITON_INTERPRET=1 is set, before a kernel runs.

Seen in Triton 3.6 and 3.9. The interpreter keeps bfloat16 tensors as their 16-bit patterns, and
- multiplies those patterns as integers in `tl.dot`, without a word;
- truncates float32 to bfloat16 where hardware rounds to nearest even, and makes NaN of tiny values;
- computes `tf32` and `tf32x3` products exactly, where tensor cores ignore the last bits of operands and lose the product of the two small parts.
Triton 3.6 alone rounds `tl.fma` twice, and cannot loop over a range whose bound is a tensor under NumPy 2.4.
"""

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton._C.libtriton import ir as _ir
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


def _dot(self, a, b, d, precision, *options):
    if precision == _ir.INPUT_PRECISION.TF32 and a.dtype.scalar == tl.float32:
        return _create_dot(self, _cut(a), _cut(b), d, precision, *options)
    if precision != _ir.INPUT_PRECISION.TF32x3:
        return _create_dot(self, _widened(a), _widened(b), d, precision, *options)
    for left, right in _tf32_parts(a.data, b.data):
        d = _create_dot(self, TensorHandle(left, tl.float32), TensorHandle(right, tl.float32), d, precision, *options)
    return d


def _cut(handle: TensorHandle) -> TensorHandle:
    return TensorHandle((np.ascontiguousarray(handle.data).view(np.uint32) & 0xFFFFE000).view(np.float32), tl.float32)


def _tf32_parts(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The three products of Triton's tf32x3, smallest first."""
    a_big, b_big = _tf32(a), _tf32(b)
    with np.errstate(invalid="ignore"):
        a_small, b_small = _tf32(a - a_big), _tf32(b - b_big)
    return [(_finite(a_small), _finite(b_big)), (_finite(a_big), _finite(b_small)), (a_big, b_big)]


def _finite(x: np.ndarray) -> np.ndarray:
    # an infinity has no small part; Triton keeps the NaN out of its products too
    return np.where(np.isfinite(x), x, np.float32(0))


def _tf32(x: np.ndarray) -> np.ndarray:
    """Rounded to 10 bits of mantissa, to nearest, ties away from zero; infinities and NaN as they are."""
    rounded = ((np.ascontiguousarray(x).view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


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
