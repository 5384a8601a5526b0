"""Writes the ops in the layout of Hugging Face's kernel hub: `python tools/export_kernel_hub.py build/kernel-hub --repo-id OWNER/vtkernels`.

What comes out is a project for kernel-builder without native code: the Triton backends and the references. The hub loads a kernel
under a name that nobody knows before, several versions of it in one process. Therefore imports become relative, modules of backends are
named from their package, and torch ops are registered in the namespace that the builder's `_ops.py` gives. Nothing of this is built or
uploaded here.
"""

import argparse
import ast
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vtkernels"
NAME = "vtkernels"

BUILD_TOML = """[general]
name = "vtkernels"
version = 0
edition = 5
license = "Apache-2.0"
backends = ["cpu", "cuda"]
python-depends = ["einops"]

[general.hub]
repo-id = "{repo_id}"

[torch-noarch]
pyext = ["py", "json"]
"""
FLAKE = """{
  description = "vtkernels for the kernel hub";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }: kernel-builder.lib.genKernelFlakeOutputs {
    inherit self;
    path = ./.;
  };
}
"""
CARD = """---
library_name: kernels
license: apache-2.0
---

# vtkernels

Fused ops of vision transformers: {ops}.

```python
from kernels import get_kernel

# a publisher the hub does not vouch for must be trusted by name
vt = get_kernel("{repo_id}", version=0, trust_remote_code=["{repo_id}"])
```

Here are the Triton kernels and, for all devices, the reference; the CPU's kernels in C++ and the models, losses and trainers come with the
library itself. Python 3.11 or newer. No speed has been measured on a GPU.
"""
TEST = '''"""The reference of the exported ops runs, and its gradients flow."""

import pytest
import torch
import vtkernels as vt


@pytest.mark.kernels_ci
def test_window_attention():
    qkv, table = torch.randn(1, 4, 4, 24, requires_grad=True), torch.zeros(9, 2, requires_grad=True)
    out = vt.window_attention(qkv, table, num_heads=2, window_size=2, shift_size=1, backend="reference")
    out.sum().backward()
    assert out.shape == (1, 4, 4, 8) and qkv.grad.isfinite().all()
'''


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is made; must not exist or be empty")
    parser.add_argument("--repo-id", default="OWNER/vtkernels", help="of the repository on the hub")
    options = parser.parse_args(arguments)
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"folder: expected one that is new or empty, got {options.folder}; remove it first")
    export(options.folder, options.repo_id)
    print(f"{options.folder}: build it with kernel-builder, see https://huggingface.co/docs/kernels")
    return 0


def export(folder: Path, repo_id: str) -> None:
    target = folder / "torch-ext" / NAME
    public = public_imports()
    for module in needed(public):
        place = target / module.relative_to(PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(portable(module.read_text(), module.relative_to(PACKAGE)))
    for measured in PACKAGE.glob("ops/*/tuned/*.json"):
        place = target / measured.relative_to(PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(measured, place)
    names = [alias.name for node in public for alias in node.names]
    (target / "__init__.py").write_text(portable("\n".join(map(ast.unparse, public)), Path("__init__.py")) + f"\n\n__all__ = {names!r}\n")
    (folder / "build.toml").write_text(BUILD_TOML.format(repo_id=repo_id))
    (folder / "flake.nix").write_text(FLAKE)
    (folder / "CARD.md").write_text(CARD.format(repo_id=repo_id, ops=", ".join(f"`{name}`" for name in names if name in op_names())))
    (folder / "tests").mkdir()
    (folder / "tests" / "test_reference.py").write_text(TEST)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")


def public_imports() -> list[ast.ImportFrom]:
    """What the library itself imports when it is imported: its ops; and the modules built on them."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{NAME}.")]
    return [*imports, *ast.parse(f"from {NAME} import nn").body]


def op_names() -> set[str]:
    folders = [path.parent.name for path in PACKAGE.glob("ops/*/op.py")]
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    ours = {f"{NAME}.ops.{folder}" for folder in folders}
    return {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in ours for alias in node.names}


def needed(public: list[ast.ImportFrom]) -> list[Path]:
    """The public modules, all backends, and whatever they import, directly or not."""
    waiting = [path for path in PACKAGE.glob("ops/*/*.py") if path.name != "cases.py"] + [PACKAGE / "nn.py"]
    for node in public:
        waiting += files_of(node)
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found or path == PACKAGE / "__init__.py":
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == NAME:
                waiting += files_of(node)
    return sorted(found)


def files_of(node: ast.ImportFrom) -> list[Path]:
    """`from vtkernels.a import b`: the packages on the way, a, and b if that is a module."""
    parts = str(node.module).split(".")[1:]
    places = [PACKAGE.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    places += [PACKAGE.joinpath(*parts, alias.name) for alias in node.names]
    files = [place / "__init__.py" if place.is_dir() else place.with_suffix(".py") for place in places]
    return [file for file in files if file.exists()]


def portable(source: str, place: Path) -> str:
    """Source code that does not know what its package is called."""
    root = "." * len(place.parts)
    source = re.sub(rf"\bfrom {NAME}(?:\.([\w.]+))? import", lambda match: f"from {root}{match[1] or ''} import", source)
    source = re.sub(rf'(?<=[ (])"{NAME}\.ops\.\w+"', "__package__", source)
    source = re.sub(rf'f"{NAME}\.ops\.\w+\.', 'f"{__package__}.', source)
    source = source.replace(f'f"{NAME}.ops.', "f\"{__package__.rpartition('.')[0]}.ops.")
    source, calls = re.subn(rf"torch\.ops\.{NAME}\b", "ops", source)
    before = source
    source = source.replace(f'Library("{NAME}", "DEF")', 'Library(add_op_namespace_prefix("").removesuffix("::"), "DEF")')
    source = source.replace(f'f"{NAME}::{{name}}"', "add_op_namespace_prefix(name)")
    given = ["add_op_namespace_prefix"] * (source != before) + ["ops"] * (calls > 0)
    if given:
        first = min(node.lineno for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom))
        lines = source.splitlines(keepends=True)
        source = "".join([*lines[: first - 1], f"from {root}_ops import {', '.join(given)}\n", *lines[first - 1 :]])
    for node in ast.walk(ast.parse(source)):
        absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
        if any(str(name).split(".")[0] == NAME for name in absolute) and not getattr(node, "level", 0):
            raise SystemExit(f"{place}:{node.lineno}: expected `from {NAME}... import ...`, got another form of import; write it that way")
    return source


if __name__ == "__main__":
    sys.exit(main())
