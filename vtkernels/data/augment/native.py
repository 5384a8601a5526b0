"""The extension of image operations, or why it is not there."""

import functools
import importlib
from types import ModuleType


@functools.cache
def imgops() -> ModuleType:
    try:
        return importlib.import_module("vtkernels._imgops")
    except ImportError as error:
        raise ImportError(
            f"vtkernels.data.augment: expected the extension vtkernels._imgops, got {error}; "
            "install a C++ compiler, Python's headers and pybind11, and reinstall with VTKERNELS_BUILD=cpu"
        ) from error
