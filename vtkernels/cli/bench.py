"""`vtkernels bench`: the benchmarks of the checkout that this package runs from."""

import subprocess
import sys
from pathlib import Path

import vtkernels


def bench(arguments: list[str]) -> int:
    script = Path(vtkernels.__file__).resolve().parents[1] / "benchmarks" / "all.py"
    if not script.exists():
        told = "expected to run from a checkout, which has benchmarks/ beside the package, got an installed package"
        print(f"vtkernels bench: {told}; clone the repository, or ask `python -m vtkernels.profile` about one call", file=sys.stderr)
        return 2
    with subprocess.Popen([sys.executable, str(script), *arguments]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # the script hears it as well, and ends with a page of what it has measured
                continue
