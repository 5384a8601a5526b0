"""Groups, clipping, averages and RMSProp over parameters sharded by `fully_shard`, as on one process."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from two_processes import SIZE, on_two_processes, processes  # noqa: F401

from vtkernels.optim import Ema, clip_grad_adaptive_, clip_grad_norm_, clip_grad_value_, create_optimizer, param_groups

X = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CLIPS = {
    "torch": lambda params: clip_grad_norm_(params, 0.3),
    "jax": lambda params: clip_grad_norm_(params, 0.3, only_above=True),
    "value": lambda params: clip_grad_value_(params, 0.05),
    "adaptive": lambda params: clip_grad_adaptive_(params, 0.05),
}


def pair() -> tuple[nn.Module, nn.Module]:
    """One module twice, the second one sharded; no dimension is even."""
    whole = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    split = copy.deepcopy(whole)
    fully_shard(split, mesh=init_device_mesh("cpu", (SIZE,)))
    return whole, split


def backward(whole: nn.Module, split: nn.Module) -> None:
    for module in (whole, split):
        module.zero_grad()
        (10 * module(X).square().mean()).backward()


def assert_alike(whole, split) -> None:
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(b.full_tensor() if isinstance(b, DTensor) else b, a, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("how", CLIPS)
@on_two_processes
def test_clipping(rank, how):
    whole, split = pair()
    backward(whole, split)
    norms = [CLIPS[how](module.parameters()) for module in (whole, split)]
    if norms[0] is not None:
        torch.testing.assert_close(norms[1], norms[0])
    assert_alike([param.grad for param in whole.parameters()], [param.grad for param in split.parameters()])


@pytest.mark.parametrize("name", ["nesterov", "sgdw", "adamw", "rmsprop"])
@on_two_processes
def test_steps_and_averages(rank, name):
    whole, split = pair()
    optimizers = [create_optimizer(name, param_groups(module, weight_decay=0.1), lr=0.05) for module in (whole, split)]
    averages = [Ema(module, decay=0.7, warmup=True) for module in (whole, split)]
    for _ in range(4):
        backward(whole, split)
        for module, optimizer, ema in zip((whole, split), optimizers, averages, strict=True):
            optimizer.step()
            ema.update(module)
    assert_alike(whole.parameters(), split.parameters())
    assert_alike(averages[0].averages.values(), averages[1].averages.values())
    assert any(isinstance(average, DTensor) for average in averages[1].averages.values())
    before = [param.detach().full_tensor() for param in split.parameters()]
    with averages[1].applied(split), averages[0].applied(whole):
        assert_alike(whole.parameters(), split.parameters())
    assert all(torch.equal(a, b.full_tensor()) for a, b in zip(before, split.parameters(), strict=True))
