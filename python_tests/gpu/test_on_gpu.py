"""What only a GPU can show, skipped where there is none: nothing waits for it, and a graph captures a whole training step."""

from pathlib import Path

import pytest
import torch

from vtkernels._core import testing
from vtkernels._core.op import OPS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def graph(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import gpu_graph

    return gpu_graph


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_no_op_waits_for_the_device(op, backend):
    if backend not in OPS[op].backend_names:
        pytest.skip(f"{op} has no {backend} backend")
    for case in (case for case in testing.cases(op) if case.representative):
        inputs = case.inputs(torch.float16, "cuda")
        if reason := testing.why_not(op, inputs, backend):
            pytest.skip(reason)
        run = testing.run_case if testing.has_gradients(op) else testing.run_in_place
        # builds the kernels and makes what is made once
        run(op, inputs, backend)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(op, inputs, backend)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_a_training_step_waits_for_nothing(graph, base):
    assert graph.waits(base) == []


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_a_captured_training_step_is_the_eager_one(graph, base):
    assert graph.capture(base) == []
