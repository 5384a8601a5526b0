"""What only a GPU can show, skipped where there is none: nothing waits for it, a graph captures a whole training step, batches arrive whole."""

from dataclasses import replace
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_an_update_of_the_trainer_waits_for_nothing(precision):
    pytest.importorskip("sklearn")
    from vtkernels.recipes import build, get_recipe

    recipe = get_recipe("demo")
    trainer = build(replace(recipe, train=replace(recipe.train, precision=precision)))
    # two batches of the loader's, the second of which was sent ahead
    _, batch = (batch for batch, _ in zip(trainer.train_loader, range(2), strict=False))
    trainer.module.train()
    for _ in range(3):
        trainer._update([batch], 10.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._update([batch], 10.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_sent_ahead_are_those_of_the_cpu():
    from vtkernels import data

    shapes = data.create_dataset("shapes", count=43, size=8)
    options = {"statistics": shapes.statistics, "erase": data.RandomErasing(0.5), "mix": data.Mixup(num_classes=8, cutmix_alpha=1.0)}
    there, here = (data.create_loader(shapes, 4, train=True, seed=1, device=device, **options) for device in ("cuda", "cpu"))
    for _ in range(2):
        found = []
        for images, targets in there:
            # the device is still busy with the batch when the next one is on its way
            torch.cuda._sleep(10_000_000)
            found.append((images.sin(), targets.clone()))
        for (images, targets), (expected, expected_targets) in zip(found, here, strict=True):
            torch.testing.assert_close(images.cpu(), expected.sin())
            torch.testing.assert_close(targets.cpu(), expected_targets)
