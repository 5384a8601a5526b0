"""Starts the tests of `interpreted/` in a process of their own: the interpreter must be chosen before triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "python_tests" / "gpu" / "interpreted"
FILES = sorted(FOLDER.glob("test_*.py"))
# Triton's other supported line, made by: pip install --no-deps --target build/triton-3.6 "triton==3.6.*"
OTHER = Path(os.environ.get("VTKERNELS_OTHER_TRITON", REPOSITORY / "build" / "triton-3.6"))


def _run(tests: Path, *options: str, path: str = "", **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), *options]
    paths = os.pathsep.join(filter(None, [path, str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, **environment}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, f"\n{done.stdout[-20000:]}\n{done.stderr[-5000:]}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_are_right_on_the_interpreter(file: Path):
    pytest.importorskip("triton", reason="triton, which brings the interpreter, is not installed")
    # the process inherits CI and VTKERNELS_FULL, which ask for the full form
    _run(file)


def test_kernels_are_right_under_the_other_supported_triton():
    """The few cases that the default run has in bfloat16, where the interpreters differ most."""
    if not (OTHER / "triton").is_dir():
        pytest.skip(f"no second triton in {OTHER}; pip install --no-deps --target {OTHER} 'triton==3.6.*'")
    _run(FOLDER, "-k", "bfloat16", path=str(OTHER), CI="", VTKERNELS_FULL="")
