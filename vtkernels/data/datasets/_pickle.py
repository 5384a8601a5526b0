"""Pickles of plain data and numeric arrays, and of nothing else: reading one runs no code of its author."""

import functools
import io
import pickle
from typing import Any, BinaryIO

import numpy as np

_NUMERIC = frozenset("biuf")
_PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None))


def load_plain_pickle(file: BinaryIO | bytes, source: str, encoding: str = "bytes") -> Any:
    """Dictionaries, lists, numbers, strings, bytes and numeric NumPy arrays; anything else raises pickle.UnpicklingError.

    Args:
        file: the pickle.
        source: its name, for messages.
        encoding: what Python 2's strings become; "bytes" leaves them alone.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        return _with_arrays(_PlainUnpickler(stream, encoding=encoding).load(), {})
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(f"{source}: {error}") from None
    except Exception as error:
        raise pickle.UnpicklingError(f"{source}: expected a pickle of plain data, got {type(error).__name__}: {error}") from error


class _ArrayClass:
    """Stands where the pickle says `numpy.ndarray`: the class itself would allocate whatever shape a pickle asks for."""


class _Dtype:
    """A number's type as a pickle tells it. NumPy's own would take flags and fields from the pickle on trust."""

    def __init__(self, code: bytes | str, align: bool = False, copy: bool = False):
        self.dtype = np.dtype(code.decode("ascii") if isinstance(code, bytes) else code)
        if self.dtype.kind not in _NUMERIC:
            raise pickle.UnpicklingError(f"expected numbers, got an array of {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        _, order, *described = state
        if any(part is not None for part in described[:3]):
            raise pickle.UnpicklingError("expected numbers, got an array of records")
        self.dtype = self.dtype.newbyteorder(order.decode("ascii") if isinstance(order, bytes) else order)


class _Array:
    """An array before its contents are known."""

    def __init__(self, array_class: type, shape: tuple, typecode: bytes | str):
        self.array = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, contents = state
        contents = contents.encode("latin1") if isinstance(contents, str) else contents
        self.array = _from_buffer(contents, dtype, shape, "F" if is_fortran else "C")


def _from_buffer(contents: bytes, dtype: _Dtype, shape: tuple, order: str, axis_order: None = None) -> np.ndarray:
    """The array of these bytes; NumPy refuses a shape of another size."""
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError(f"expected a number's type, got {type(dtype).__name__}")
    return np.frombuffer(contents, dtype.dtype).reshape(shape, order=order).copy(order="K")


def _with_arrays(value: Any, known: dict[int, Any]) -> Any:
    """`known` by identity: a small pickle can hold one list in another so often that to copy it each time would take forever."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, (*_PLAIN, np.ndarray)):
        return value
    if id(value) not in known:
        if isinstance(value, dict):
            known[id(value)] = {_with_arrays(key, known): _with_arrays(part, known) for key, part in value.items()}
        elif isinstance(value, (list, tuple)):
            known[id(value)] = type(value)(_with_arrays(part, known) for part in value)
        else:
            raise pickle.UnpicklingError(f"expected plain data and arrays, got {type(value).__name__}")
    return known[id(value)]


def _latin_bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"expected latin1, got the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How it writes empty ones."""
    return b""


_ALLOWED = {
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin_bytes,
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _from_buffer


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"expected plain data and arrays, got a reference to {module}.{name}; refused, this file may be malicious")
        # of its own, as a pickle may set attributes of what it refers to
        return functools.partial(_ALLOWED[module, name])
