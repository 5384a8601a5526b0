"""Imports go one way, and the backends of an op do not know each other. Read from the syntax trees, so that nothing is imported."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "vtkernels"
# a module imports its own layer and the lower ones
LAYERS = [
    {"_core", "version"},
    {"ops"},
    {"layers", "losses", "optim", "nn"},
    {"models"},
    {"data", "integrations"},
    {"evaluation"},
    {"train"},
    {"recipes", "analysis"},
    {"cli", "__init__", "__main__"},
]
BACKENDS = ("reference", "native", "torch_blas", "triton", "cuda")
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(module: str) -> int:
    """Of `vtkernels.ops.window_attention.op`, 1."""
    part = (module.split(".") + ["__init__"])[1]
    found = [rank for rank, names in enumerate(LAYERS) if part in names]
    assert found, f"{module} is in no layer: place {part!r} in LAYERS and in DESIGN.md"
    return found[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write absolute imports"
            # `from package import name`: the name may be a module
            candidates = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if is_module(name) else node.module for name in candidates}
    return {name for name in names if name.split(".")[0] == "vtkernels"}


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    for imported in imports_of(path):
        assert layer(imported) <= layer(name_of(path)), f"{name_of(path)} imports {imported}, which is in a higher layer"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.parent.name == "ops"], ids=name_of)
def test_backends_do_not_know_each_other(path):
    own = next((backend for backend in BACKENDS if path.stem.startswith(backend)), None)
    if own is None and path.stem != "common":
        return
    for imported in imports_of(path):
        family, _, module = imported.rpartition(".")
        if family == name_of(path.parent):
            other = next((backend for backend in BACKENDS if module.startswith(backend)), own)
            assert other == own, f"{name_of(path)} imports {imported}: what both need belongs into common.py"
            assert module not in ("op", "module", "cases"), f"{name_of(path)} imports {imported}: op.py selects backends, they do not know it"


def test_ops_do_not_know_each_other():
    for path in PACKAGE.glob("ops/*/*.py"):
        others = {name for name in imports_of(path) if name.startswith("vtkernels.ops.") and name.split(".")[2] != path.parent.name}
        assert not others, f"{name_of(path)} imports {others}: what two ops need belongs into _core"


def test_the_reader_sees_imports_inside_functions_and_of_modules(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("def f():\n    from vtkernels._core import env\n    import vtkernels.ops\nfrom vtkernels.version import __version__\n")
    assert imports_of(source) == {"vtkernels._core.env", "vtkernels.ops", "vtkernels.version"}
