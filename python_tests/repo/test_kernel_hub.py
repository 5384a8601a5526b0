"""The export for the kernel hub: complete, without absolute names, and it runs under any name beside the library itself."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import vtkernels

ROOT = Path(__file__).parents[2]
# what kernel-builder puts beside the sources: a namespace of torch ops that nobody else has
OPS = """
import torch
ops = torch.ops._vtkernels_cpu_{unique}
def add_op_namespace_prefix(op_name):
    return f"_vtkernels_cpu_{unique}::{{op_name}}"
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "vtkernels"
    command = [sys.executable, ROOT / "tools" / "export_kernel_hub.py", folder, "--repo-id", "someone/vtkernels"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "expected one that is new or empty" in again.stderr
    return folder


def loaded(exported: Path, name: str):
    """As the hub's loader does it: from a path, under a name of its choice."""
    package = exported / "torch-ext" / "vtkernels"
    (package / "_ops.py").write_text(OPS.format(unique=name))
    spec = importlib.util.spec_from_file_location(name, package / "__init__.py", submodule_search_locations=[str(package)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_layout(exported):
    build = tomllib.loads((exported / "build.toml").read_text())
    assert build["general"]["name"] == "vtkernels" and build["general"]["hub"]["repo-id"] == "someone/vtkernels"
    # without a word about it the builder takes Python files alone
    assert {".json", ".py"} >= {path.suffix for path in (exported / "torch-ext").rglob("*") if path.is_file()}
    assert set(build["torch-noarch"]["pyext"]) == {"py", "json"}
    card = (exported / "CARD.md").read_text()
    assert f'get_kernel("someone/vtkernels", version={build["general"]["version"]}, trust_remote_code=["someone/vtkernels"])' in card
    for part in ("flake.nix", "CARD.md", "LICENSE", "tests/test_reference.py", "torch-ext/vtkernels/__init__.py"):
        assert (exported / part).is_file()
    folders = {path.name for path in (ROOT / "vtkernels" / "ops").iterdir() if (path / "op.py").exists()}
    assert {path.name for path in (exported / "torch-ext" / "vtkernels" / "ops").iterdir() if path.is_dir()} == folders
    assert not list(exported.rglob("cases.py"))


def test_runs_under_any_name_beside_the_library(exported):
    ours, other = loaded(exported, "first_version"), loaded(exported, "second_version")
    qkv, table = torch.randn(2, 5, 9, 24, requires_grad=True), torch.randn(9, 2, requires_grad=True)
    arguments = {"num_heads": 2, "window_size": 2, "shift_size": 1, "backend": "reference"}
    truth = vtkernels.window_attention(qkv, table, **arguments)
    for vt in (ours, other):
        qkv.grad = None
        out = vt.window_attention(qkv, table, **arguments)
        assert torch.equal(out, truth)
        out.sum().backward()
        assert qkv.grad.isfinite().all()
    names = [getattr(torch.ops, f"_vtkernels_cpu_{name}").window_attention.default.name() for name in ("first_version", "second_version")]
    assert names[0] != names[1] != "vtkernels::window_attention"
    assert "reference  can run, chosen" in str(ours.explain("window_attention", qkv.detach(), table.detach(), num_heads=2, window_size=2))


def test_every_op_runs(exported):
    vt = loaded(exported, "third_version")
    logits, target = torch.randn(6, 5, requires_grad=True), torch.tensor([1, 4])
    vt.augmix_loss(logits, target, num_views=3, weight=12.0, backend="reference").backward()
    assert logits.grad.isfinite().all()
    pairs, targets, _ = vt.drloc_pairs(torch.randn(2, 3, 5, 4), num_pairs=7, seed=0, backend="reference")
    assert pairs.shape[:2] == (2, 7) and targets.shape == (2, 7, 2)
    tokens = torch.randn(2, 5, 8)
    for module in (vt.nn.ClassAttention(8, num_heads=2), vt.nn.TalkingHeadsAttention(8, num_heads=2)):
        assert module(tokens).isfinite().all()
    weights, grads, backups = [torch.ones(3)], [torch.ones(3)], [torch.empty(3)]
    total = vt.sam_square_sum(weights, grads, backend="reference")
    vt.sam_perturb_(weights, grads, backups, square_sum=total, rho=0.05, backend="reference")
    vt.sam_restore_(weights, backups, backend="reference")
    assert torch.equal(weights[0], torch.ones(3))
    compiled = torch.compile(vt.linear, fullgraph=True, backend="eager")
    weight = torch.randn(4, 8)
    assert torch.allclose(compiled(tokens, weight), torch.nn.functional.linear(tokens, weight), atol=1e-5)


def test_nothing_names_the_package(exported):
    for path in (exported / "torch-ext" / "vtkernels").rglob("*.py"):
        text = path.read_text()
        assert "from vtkernels" not in text and "torch.ops.vtkernels." not in text and '"vtkernels.ops' not in text, path
