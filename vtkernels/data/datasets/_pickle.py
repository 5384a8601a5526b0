"""Pickles of plain data and numeric arrays, and of nothing else: reading one runs no code of its author."""

import io
import pickle
from typing import Any, BinaryIO

import numpy as np

_NUMERIC = frozenset("biuf")


def load_plain_pickle(file: BinaryIO | bytes, source: str, encoding: str = "bytes") -> Any:
    """Dictionaries, lists, numbers, strings, bytes and numeric NumPy arrays; anything else raises pickle.UnpicklingError.

    Args:
        file: the pickle.
        source: its name, for messages.
        encoding: what Python 2's strings become; "bytes" leaves them alone.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        return _PlainUnpickler(stream, encoding=encoding).load()
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(f"{source}: {error}") from None
    except Exception as error:
        raise pickle.UnpicklingError(f"{source}: expected a pickle of plain data, got {type(error).__name__}: {error}") from error


class _ArrayClass:
    """Stands where the pickle says `numpy.ndarray`: the class itself would allocate whatever shape a pickle asks for."""


def _empty_array(array_class: type, shape: tuple, typecode: bytes | str) -> np.ndarray:
    """How an array's pickle begins; its shape and contents follow, and NumPy checks that they agree."""
    if array_class is not _ArrayClass or shape != (0,) or typecode not in (b"b", "b"):
        raise pickle.UnpicklingError("expected an array's usual pickle, got another construction")
    return np.empty(0, np.int8)


def _numeric_dtype(code: bytes | str, align: bool = False, copy: bool = False) -> np.dtype:
    dtype = np.dtype(code.decode("ascii") if isinstance(code, bytes) else code)
    if dtype.kind not in _NUMERIC:
        raise pickle.UnpicklingError(f"expected numbers, got an array of {dtype}")
    return np.dtype(dtype.str)


def _latin_bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"expected latin1, got the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _numeric_dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("_codecs", "encode"): _latin_bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"expected plain data and arrays, got a reference to {module}.{name}; refused, this file may be malicious")
        return _ALLOWED[module, name]
