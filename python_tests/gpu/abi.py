"""What a native library asks of torch, held to what the oldest torch that is supported has.

`torch_2_10_symbols.txt` lists the C symbols of 2.10.0's libtorch_cpu.so that belong to no one device: those of the stable ABI, and more.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

OLDEST = Path(__file__).with_name("torch_2_10_symbols.txt")


def needed(library: Path) -> dict[str, str]:
    """Symbols of torch that a library leaves undefined, with nm's letter: U, or w where it does without."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm, which binutils brings, is not installed")
    lines = subprocess.run([nm, "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {name.partition("@")[0]: letter for letter, name in (line.split()[-2:] for line in lines)}
    return {name: letter for name, letter in found.items() if _of_torch(name)}


def missing(symbols: dict[str, str]) -> list[str]:
    return sorted(symbols.keys() - set(OLDEST.read_text().split()))


def _of_torch(name: str) -> bool:
    # the last two: C++ of torch or of c10, which has no stable names
    return name.startswith(("aoti_torch_", "torch_")) or name.startswith("_Z") and ("3c10" in name or "2at" in name or "5torch" in name)
