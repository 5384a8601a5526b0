"""No op makes the host wait for the device, and a SAM training step launches the same kernels whatever the numbers are."""

import ast
from pathlib import Path

import pytest
import torch

from vtkernels._core import testing
from vtkernels._core.op import OPS

pytest.importorskip("triton", reason="the launches to watch are triton's, which is not installed")

from python_tests.gpu.waiting import Waits, pretended_device

ROOT = Path(__file__).parents[2]
# each waits for the device, or copies to it from memory that is not pinned
WAITING = {"item", "cpu", "tolist", "numpy", "nonzero", "argwhere", "masked_select", "synchronize", "new_tensor", "unique", "bincount"}
# reached with tensors of the CPU only
ON_A_CPU = {"_refuse_outside", "_written_gradient"}
LAUNCHERS = sorted(path for name in ("triton*.py", "cuda.py", "op.py", "common.py") for path in (ROOT / "vtkernels" / "ops").glob(f"*/{name}"))


def on_the_device(value):
    if isinstance(value, list):
        return [on_the_device(one) for one in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", [op for op in OPS if "triton" in OPS[op].backend_names])
def test_no_op_waits_for_the_device(op, dtype):
    launches = 0
    for case in testing.cases(op):
        inputs = {name: on_the_device(value) for name, value in case.inputs(dtype).items()}
        with pretended_device() as launched:
            run = testing.run_case if testing.has_gradients(op) else testing.run_in_place
            run(op, inputs, "triton")
        launches += len(launched)
    assert launches


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.equal(x, x + 1),
        lambda x: x.unique(),
        lambda x: float(x[0]),
    ],
)
def test_what_waits_is_caught(waits):
    with pretended_device(), pytest.raises((Waits, NotImplementedError, RuntimeError)):
        waits(torch.empty(3, device="meta"))


@pytest.mark.parametrize(("base", "options"), [("SGD", {}), ("AdamW", {"capturable": True})])
def test_a_sam_training_step_does_not_depend_on_the_device(monkeypatch, base, options):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_graph

    training = gpu_graph.Training(base, "meta", "triton", **options)
    steps = []
    for _ in range(3):
        with pretended_device() as launched:
            training.step()
        steps.append([build.kernel.fn.__name__ for build in launched])
    assert steps[0] == steps[1] == steps[2]
    both = {name.removesuffix("_kernel") for name in steps[0]}
    assert {"window_attention_small_bwd", "talking_heads_bwd_row", "class_attention_tokens_bwd", "jsd_row", "sam_perturb"} <= both
    assert steps[0].count("window_attention_small_fwd_kernel") == 2


def test_a_sam_training_step_runs(monkeypatch):
    """On a CPU, with numbers: what is captured on a GPU is a step that learns."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_graph

    training = gpu_graph.Training("SGD", "cpu", "reference")
    before = {name: param.detach().clone() for name, param in training.model.named_parameters()}
    training.step()
    after = dict(training.model.named_parameters())
    assert all(param.isfinite().all() for param in after.values())
    # class attention's key bias has no gradient
    assert [name for name, param in after.items() if torch.equal(param, before[name])] == ["pool.1.bias"]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_launcher_names_a_call_that_waits(path):
    tree = ast.parse(path.read_text())
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name not in ON_A_CPU):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in WAITING, f"{path}:{node.lineno}: .{node.func.attr}() waits for the device"
