"""Every file in its room: complete op folders, short files, nothing that is true on one machine only."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest

import vtkernels
from vtkernels._core.op import OPS, Op

ROOT = Path(__file__).parents[2]
OP_FOLDERS = sorted(path for path in (ROOT / "vtkernels" / "ops").iterdir() if (path / "__init__.py").exists())
EVERY_FOLDER = pytest.mark.parametrize("folder", OP_FOLDERS, ids=lambda folder: folder.name)
CODE = {".py", ".cpp", ".h", ".cu", ".cuh", ".md"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked_files() if path.suffix in CODE}
    assert {name: length for name, length in lengths.items() if length > 600} == {}
    assert len((ROOT / "setup.py").read_text().splitlines()) < 150


def test_lines_fit():
    for path in tracked_files():
        if path.suffix in CODE - {".md"}:
            for number, line in enumerate(path.read_text().splitlines(), 1):
                assert len(line) <= 160, f"{path.relative_to(ROOT)}:{number} has {len(line)} characters"


def test_no_paths_of_one_machine():
    home = re.compile(r"(?<![\w./:-])/(?:work|root|home|Users|tmp)/\w")
    for path in tracked_files():
        if path.suffix not in {".png"}:
            found = home.search(path.read_text())
            assert found is None, f"{path.relative_to(ROOT)} names {found.group()}..."


def ops_of(folder: Path) -> list[Op]:
    """A folder holds one op, or several that belong together."""
    return [op for op in OPS.values() if op.package == f"vtkernels.ops.{folder.name}"]


@EVERY_FOLDER
def test_op_folder_is_complete(folder):
    missing = {"README.md", "reference.py", "op.py", "cases.py"} - {path.name for path in folder.iterdir()}
    assert not missing
    assert (ROOT / "python_tests" / "ops" / f"test_{folder.name}.py").exists()
    readme = (folder / "README.md").read_text()
    for op in ops_of(folder):
        assert op.name in vtkernels.__all__
        assert op.name in readme
        for backend in op.backend_names:
            assert f"`{backend}`" in readme, f"the op's README does not tell of its {backend} backend"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_backend_answers_for_all_phases(op):
    assert op.backend_names[-1] == "reference"
    for name in op.backend_names:
        backend = op.backend(name)
        assert backend.name == name
        assert set(backend.phases) <= set(op.phases)
        # of phases it leaves out it must say so, whatever the call
        example = op.to_call(**op.arguments(**op.example("cpu")))
        assert all(backend.why_not(phase, example) for phase in set(op.phases) - set(backend.phases))


def test_every_op_folder_holds_an_op():
    assert all(ops_of(folder) for folder in OP_FOLDERS)
    assert sum(len(ops_of(folder)) for folder in OP_FOLDERS) == len(OPS)


def test_public_names_exist():
    for name in vtkernels.__all__:
        assert getattr(vtkernels, name) is not None
    assert vtkernels.nn is importlib.import_module("vtkernels.nn")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vtkernels.nothing  # noqa: B018
