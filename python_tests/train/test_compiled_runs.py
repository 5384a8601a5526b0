"""Training under torch.compile as users get it, with inductor, is training without it."""

import shutil

import pytest
import torch
from runs import CLASSES, Losses, Noise, sgd, trainer

import vtkernels as vt
from vtkernels.train import ClassificationTask


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "swin_nano_patch4_window4_32"])
def test_inductor_trains_the_same(name, fresh_compiler):
    torch._dynamo.utils.counters.clear()
    curves, runs = [], []
    for switch in (False, True):
        torch.manual_seed(1)
        task, seen = ClassificationTask(vt.create_model(name, num_classes=CLASSES)), Losses()
        train, valid = (vt.data.create_loader(Noise(count, 32), 4, train=count == 16) for count in (16, 6))
        runs.append(trainer(None, task, sgd, train=train, valid=valid, epochs=1, compile=switch, observers=[seen]))
        metrics = runs[-1].fit().epochs[-1].valid
        curves.append(torch.tensor([*seen.curve, metrics["loss"]]))
    torch.testing.assert_close(*curves, rtol=1e-4, atol=1e-5)
    for one, other in zip(*(made.task.parameters() for made in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    # our ops are parts of the graphs
    assert not torch._dynamo.utils.counters["graph_break"]
