"""`vt.optim.SAM` on a GPU: nothing waits for the device, a step can be captured. Skipped where there is none."""

import copy

import pytest
import torch
from sam_problems import mlp
from torch import nn

import vtkernels as vt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
of_each_base = pytest.mark.parametrize(("base", "options"), [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (torch.optim.AdamW, {"lr": 0.01})])


def two_passes(model, sam, x, scaler=None) -> None:
    def backward():
        loss = model(x).square().mean()
        (loss if scaler is None else scaler.scale(loss)).backward()

    backward()
    with sam.perturbed():
        backward()
    if scaler is None:
        sam.step()
    else:
        scaler.step(sam)
        scaler.update()
    sam.zero_grad()


@of_each_base
@pytest.mark.parametrize("scaled", [False, True])
def test_nothing_waits_for_the_device(base, options, scaled):
    model = mlp().cuda()
    x = torch.randn(16, 6, device="cuda")
    sam = vt.optim.SAM(model.parameters(), base, model=model, **options)
    scaler = torch.amp.GradScaler("cuda") if scaled else None
    two_passes(model, sam, x, scaler)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        # the scaler itself waits in update(), as it always does
        if not scaled:
            two_passes(model, sam, x)
        else:
            scaler.scale(model(x).square().mean()).backward()
            with sam.perturbed():
                scaler.scale(model(x).square().mean()).backward()
            scaler.step(sam)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@of_each_base
def test_a_captured_step_is_the_eager_one(base, options):
    model = mlp().cuda()
    x = torch.randn(16, 6, device="cuda")
    sam = vt.optim.SAM(model.parameters(), base, rho=0.1, **options)
    # library handles and the optimizer's state are made outside of the capture
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            two_passes(model, sam, x)
    torch.cuda.current_stream().wait_stream(stream)
    eager = copy.deepcopy(model)
    eager_sam = vt.optim.SAM(eager.parameters(), base, rho=0.1, **options)
    eager_sam.load_state_dict(copy.deepcopy(sam.state_dict()))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        two_passes(model, sam, x)
    for _ in range(3):
        graph.replay()
        two_passes(eager, eager_sam, x)
    found, expected = (nn.utils.parameters_to_vector(module.parameters()) for module in (model, eager))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overflow", [(1,), (2,), (1, 2)])
def test_an_overflow_in_half_precision(overflow):
    model = mlp().cuda()
    x = torch.randn(16, 6, device="cuda")
    sam = vt.optim.SAM(model.parameters(), torch.optim.AdamW, lr=0.01, model=model)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    two_passes(model, sam, x, scaler)
    before = [param.detach().clone() for param in model.parameters()]

    def backward(too_large):
        with torch.autocast("cuda", torch.float16):
            # beyond 65504
            loss = (model(x) * (1e6 if too_large else 1.0)).square().mean()
        scaler.scale(loss).backward()

    backward(1 in overflow)
    with sam.perturbed():
        backward(2 in overflow)
    scaler.step(sam)
    scaler.update()
    sam.zero_grad()
    assert all(torch.equal(param, old) for param, old in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 512.0
    two_passes(model, sam, x, scaler)
    assert all(param.isfinite().all() for param in model.parameters()) and scaler.get_scale() == 512.0
