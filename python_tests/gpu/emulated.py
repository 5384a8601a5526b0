"""CUDA kernels as ordinary C++, run by fibers (emulation/) on CPU tensors: their logic is tested so; races, launches and speed need a GPU."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"


def compile_emulation(folder: str, to: Path) -> Path:
    """The shared library of `csrc/<folder>/cuda.cu`."""
    if shutil.which("g++") is None:
        pytest.skip("the emulation of CUDA needs g++")
    library, include = to / f"{folder}.so", Path(torch.__file__).parent / "include"
    folders = [f"-I{path}" for path in (Path(__file__).parent / "emulation", include, CSRC)]
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000", *folders]
    source, link = CSRC / folder / "cuda.cu", [f"-L{include.parent / 'lib'}", "-ltorch_cpu"]
    done = subprocess.run(["g++", *flags, "-x", "c++", source, "-o", library, *link], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:5000]
    return library


@contextlib.contextmanager
def native_ops(folder: str, library: Path) -> Iterator[torch._ops._OpNamespace]:
    """The library's ops with the schemas of the real ones."""
    registry = torch.library.Library("vtkernels_emulated", "DEF")
    for schema in schemas(folder):
        registry.define(schema)
    torch.ops.load_library(str(library))
    yield torch.ops.vtkernels_emulated
    registry._destroy()


def schemas(folder: str) -> list[str]:
    """Those that `csrc/<folder>/register.cpp` defines, in place or by a constant."""
    source = (CSRC / folder / "register.cpp").read_text()
    statements = re.findall(r"(?:m\.def\(|constexpr const char\* \w+ =)([^;]*\"[^;]*);", source)
    return ["".join(re.findall(r'"([^"]*)"', statement)) for statement in statements]
