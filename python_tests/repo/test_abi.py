"""One binary for every torch from 2.10 on: the installed library asks for nothing that 2.10 lacks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vtkernels
from python_tests.gpu import abi

LIBRARY = Path(vtkernels.__file__).parent / "_native.so"


def test_the_installed_library_needs_nothing_that_the_oldest_torch_lacks():
    if not LIBRARY.exists():
        pytest.skip("the native library is not built")
    needed = abi.needed(LIBRARY)
    assert len(needed) > 20
    assert abi.missing(needed) == []


def test_a_library_that_asks_for_more_is_found(tmp_path):
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("needs a C compiler")
    source = tmp_path / "asks.c"
    source.write_text("void torch_get_num_threads(void); void torch_of_tomorrow(void); void _ZN3c106detail3askEv(void);\n"
                      "void ask(void) { torch_get_num_threads(); torch_of_tomorrow(); _ZN3c106detail3askEv(); }\n")  # fmt: skip
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "asks.so", source], check=True)
    assert abi.missing(abi.needed(tmp_path / "asks.so")) == ["_ZN3c106detail3askEv", "torch_of_tomorrow"]
