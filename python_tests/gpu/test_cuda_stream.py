"""How CUDA C++ finds torch's current stream: in a library that torch loads for itself, whose symbols no other library is linked to."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
ASKS = '#include "common/cuda_stream.h"\nextern "C" int found() { return vtk::current_cuda_stream() != nullptr; }\n'
# what a CUDA build of torch brings, for this matter
STAND_IN = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 0; }\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    folder = tmp_path_factory.mktemp("cuda_stream")
    for name, source, flags in (("asks", ASKS, [f"-I{CSRC}", "-std=c++20"]), ("libtorch_cuda", STAND_IN, ["-Wl,-soname,libtorch_cuda.so"])):
        (folder / f"{name}.cpp").write_text(source)
        subprocess.run(["g++", "-shared", "-fPIC", *flags, folder / f"{name}.cpp", "-o", folder / f"{name}.so"], check=True)
    return folder


def found(folder: Path, *before: str) -> bool:
    """In a process of its own, which has done some things before it asks."""
    code = ["import ctypes, sys, pathlib", "folder = pathlib.Path(sys.argv[1])", *before, "print(ctypes.CDLL(folder / 'asks.so').found())"]
    done = subprocess.run([sys.executable, "-c", "\n".join(code), folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bool(int(done.stdout))


def test_it_is_found_where_it_was_loaded_for_others(folder):
    assert not found(folder)
    assert found(folder, "ctypes.CDLL(folder / 'libtorch_cuda.so', mode=ctypes.RTLD_LOCAL)")


def test_it_is_found_in_this_torch_if_that_has_cuda(folder):
    import torch

    assert found(folder, "import torch") == (torch.version.cuda is not None)
