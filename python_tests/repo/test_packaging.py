"""What an installation brings, with and without a compiler, and what importing it costs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPUTE = """
import logging, torch
logging.basicConfig(level=logging.WARNING)
import vtkernels as vt
qkv, table = torch.randn(2, 5, 9, 72), torch.randn(15, 3)
arguments = dict(num_heads=3, window_size=(2, 3), shift_size=1)
out = vt.window_attention(qkv, table, **arguments)
assert torch.equal(out, vt.window_attention(qkv, table, **arguments, backend="reference"))
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=environment.pop("cwd", ROOT), env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory):
    """A copy without anything built."""
    copy = tmp_path_factory.mktemp("source") / "vtkernels"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.so", "*.egg-info", "__pycache__", "results", "out"))
    return copy


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory):
    return {"PATH": str(tmp_path_factory.mktemp("empty")), "CXX": ""}


@pytest.mark.slow
def test_installs_and_works_without_a_compiler(source_tree, no_compiler, tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path, source_tree]
    built = subprocess.run(build, env=os.environ | no_compiler | {"VTKERNELS_BUILD": "auto"}, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "_native.so skipped: no C++ compiler was found" in built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "vtkernels/ops/window_attention/README.md" in names
    assert not [name for name in names if name.endswith(".so") or name.split("/")[0] in ("python_tests", "benchmarks", "csrc")]
    found = run(COMPUTE, cwd=str(tmp_path), PYTHONPATH=str(tmp_path / "installed"))
    assert found.returncode == 0, found.stderr
    assert "the native library was not built" in found.stderr


def test_an_explicit_build_fails_loudly(source_tree, no_compiler):
    for mode, reason in (("cpu", "no C++ compiler was found"), ("everything", "must be auto, none, cpu or cuda")):
        build = subprocess.run(
            [sys.executable, "setup.py", "build_ext"], cwd=source_tree, env=os.environ | no_compiler | {"VTKERNELS_BUILD": mode}, capture_output=True, text=True
        )
        assert build.returncode != 0
        assert reason in build.stderr


def test_reference_takes_over_with_a_warning():
    found = run(COMPUTE, VTKERNELS_NATIVE="0")
    assert found.returncode == 0, found.stderr
    assert "falls back to its slow reference backend" in found.stderr
    assert "VTKERNELS_NATIVE=0" in found.stderr


def test_works_without_triton():
    found = run("import sys; sys.modules['triton'] = None\n" + COMPUTE + "print(vt.backends()['window_attention']['triton'])", VTKERNELS_NATIVE="0")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() not in ("", "None")


def test_import_is_light():
    """Seconds of processor time beside torch's own: the wall clock would measure the neighbours."""
    found = run(
        "import time, sys, torch; start = time.process_time(); import vtkernels; print(time.process_time() - start)\n"
        "print([name for name in ('triton', 'matplotlib', 'timm', 'torchvision', 'rich') if name in sys.modules])"
    )
    seconds, heavy = found.stdout.splitlines()
    assert float(seconds) < 1.0
    assert heavy == "[]"


def test_info_tells_every_backend():
    found = subprocess.run([sys.executable, "-m", "vtkernels", "info"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for word in ("vtkernels", "torch", "triton", "devices", "window_attention", "reference"):
        assert word in found.stdout
