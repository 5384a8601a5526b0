"""Freed memory stays with the process, so that taking it again costs no page faults."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "vtkernels" / "_core" / "heap.py"
# 40 MB in blocks, all of them freed, over and over, as in the updates of a training
PROGRAM = """
import ctypes, resource, runpy, sys
kept = runpy.run_path(sys.argv[1])["keep"]() if len(sys.argv) > 1 else False
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 4 << 20

def update():
    blocks = [libc.malloc(size) for _ in range(10)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)

for _ in range(3):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    update()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> tuple[str, int]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=inherited | environment, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap can be told")
def test_memory_taken_again_costs_no_faults():
    kept, count = faults(str(MODULE))
    assert kept == "True" and count < 100
    # with huge pages faults are fewer, and never none
    assert faults()[1] > 10 * max(count, 1)


def test_the_environment_has_the_last_word():
    assert faults(str(MODULE), MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
