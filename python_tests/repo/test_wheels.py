"""What `make wheel` makes, installed where there is no compiler: the sources, a wheel for every platform, one for this."""

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def wheel(folder: Path, mode: str) -> Path:
    """Built from the objects that the native build has left, without a trace in the source tree."""
    for name in ("info", "lib", "temporary", "bundle"):
        (folder / name).mkdir()
    steps = ["egg_info", "--egg-base", folder / "info", "build", "--build-lib", folder / "lib", "--build-temp", folder / "temporary"]
    command = [sys.executable, "setup.py", "-q", *steps, "bdist_wheel", "-b", folder / "bundle", "-d", folder]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"VTKERNELS_BUILD": mode}, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


def installed(made: Path, folder: Path) -> Path:
    """The commands of an environment that has the packages of this one but for vtkernels, which comes from the wheel."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # the .pth files of a folder added so are not read: this checkout, installed editable, stays out
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    # the metadata of the other environment are seen as well, and would do
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", "--ignore-installed", made], check=True)
    return folder / "bin"


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess:
    # nothing to compile with
    environment = os.environ | {"PATH": str(folder), "CXX": "", "PYTHONPATH": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_of_this_platform_brings_its_kernels(tmp_path):
    if not (ROOT / "vtkernels" / "_native.so").exists():
        pytest.skip("the native library was not built here")
    made = wheel(tmp_path, "cpu")
    assert "none-any" not in made.name
    commands = installed(made, tmp_path / "environment")
    found = run([commands / "python", "-c", "import vtkernels; print(vtkernels.__file__); print(vtkernels.backends()['window_attention']['cpu'])"], tmp_path)
    path, reason = found.stdout.splitlines()
    assert path.startswith(str(tmp_path)) and reason == "None", found.stderr
    checked = run([commands / "vtkernels", "check"], tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "window_attention cpu on cpu: " in checked.stdout


def test_a_wheel_without_native_code_is_for_every_platform(tmp_path):
    made = wheel(tmp_path, "none")
    assert made.name.endswith("-py3-none-any.whl")
    checked = run([installed(made, tmp_path / "environment") / "vtkernels", "check", "window_attention"], tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "window_attention cpu: cannot run here: the native library was not built" in checked.stdout


def test_the_sources_can_be_built(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files", "csrc", "vtkernels", "setup.py"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: there is nothing to compare with")
    assert set(tracked.stdout.split()) <= names
