"""The moving average against timm's, and around it: swapping, checkpoints, half precision, SAM."""

import copy

import pytest
import torch
from optional import peer
from torch import nn

import vtkernels as vt
from vtkernels.optim import Ema


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def step(model, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(6, 1, 4, 4, generator=generator))
    with torch.no_grad():
        for param in model.parameters():
            param += torch.randn(param.shape, generator=generator).to(param.dtype)


@pytest.mark.parametrize(("at", "golden"), [(1, 0), (2, 0.37003947505256), (10, 0.78455653099682), (100, 0.95358411166387), (10000, 0.99784556530997)])
def test_golden_of_the_warmup(at, golden):
    assert Ema(net(), warmup=True).decay_at(at) == pytest.approx(golden, abs=1e-13)


def test_decay_without_warmup():
    ema = Ema(net(), decay=0.99, after=3)
    assert [ema.decay_at(at) for at in (0, 1, 4, 5)] == [0.0, 0.0, 0.0, 0.99]
    assert Ema(net(), decay=0.9, warmup=True).decay_at(10**6) == 0.9


@pytest.mark.parametrize("options", [{}, {"exclude_buffers": True}, {"warmup": True}, {"after": 2, "warmup": True, "gamma": 3.0, "power": 0.75}], ids=str)
def test_timm(options):
    model = net()
    renamed = {"warmup": "use_warmup", "after": "update_after_step", "gamma": "warmup_gamma", "power": "warmup_power"}
    theirs = peer("timm.utils").ModelEmaV3(model, decay=0.9, **{renamed.get(name, name): value for name, value in options.items()})
    ours = Ema(model, decay=0.9, **options)
    for at in range(1, 8):
        step(model, at)
        theirs.update(model, step=at)
        ours.update(model)
    for name, value in theirs.module.state_dict().items():
        torch.testing.assert_close(ours.averages[name], value, rtol=1e-6, atol=1e-7)
    assert ours.averages["1.num_batches_tracked"].item() == 7


def test_applied_and_back_to_the_bit():
    model = net()
    ema = Ema(model, decay=0.9)
    for at in range(4):
        step(model, at)
        ema.update(model)
    before, pointers = copy.deepcopy(model.state_dict()), [param.data_ptr() for param in model.parameters()]
    with pytest.raises(KeyError), ema.applied(model):
        for name, value in model.state_dict().items():
            assert torch.equal(value, ema.averages[name])
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert pointers == [param.data_ptr() for param in model.parameters()]
    assert not torch.equal(ema.averages["0.weight"], before["0.weight"])


def test_state_continues_to_the_bit(tmp_path):
    whole, model = net(), net()
    one, first = Ema(whole, decay=0.9, warmup=True), Ema(model, decay=0.9, warmup=True)
    second = Ema(model, decay=0.9, warmup=True)
    for at in range(6):
        step(whole, at)
        one.update(whole)
        step(model, at)
        (first if at < 3 else second).update(model)
        if at == 2:
            torch.save(first.state_dict(), tmp_path / "ema.pt")
            second.load_state_dict(torch.load(tmp_path / "ema.pt"))
    assert all(torch.equal(one.averages[name], second.averages[name]) for name in one.averages)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    model = nn.Linear(4, 4).to(dtype)
    nn.init.ones_(model.weight)
    ema = Ema(model, decay=0.9999)
    ema.update(model)
    with torch.no_grad():
        model.weight += 1
    for _ in range(20):
        ema.update(model)
    # in half precision the first of these steps would be lost
    torch.testing.assert_close(ema.averages["weight"].double(), torch.full((4, 4), 2 - 0.9999**20, dtype=torch.float64), rtol=2e-6, atol=0)
    with ema.applied(model):
        assert model.weight.dtype == dtype


def test_shared_and_frozen_parameters_and_buffers_that_are_not_saved():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    model.register_buffer("table", torch.arange(3), persistent=False)
    ema = Ema(model, decay=0.5)
    assert sorted(ema.averages) == ["0.bias", "0.weight", "1.bias"]
    weight = model[0].weight.detach().clone()
    ema.update(model)
    with ema.applied(model):
        pass
    assert torch.equal(model[0].weight, weight)


def test_averaging_costs_no_gradient_and_leaves_the_graph_alone():
    model = net()
    ema = Ema(model, decay=0.5)
    loss = model(torch.randn(2, 1, 4, 4)).sum()
    ema.update(model)
    loss.backward()
    assert not any(average.requires_grad for average in ema.averages.values())


def test_perturbed_weights_are_refused():
    model = nn.Linear(4, 2)
    sam = vt.optim.SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    ema = Ema(model, decay=0.5)
    model(torch.ones(1, 4)).sum().backward()
    sam.first_step(zero_grad=True)
    with pytest.raises(RuntimeError, match="weights must be restored, got perturbed ones; update after the optimizer's second step"):
        ema.update(model, sam)
    assert ema.step == 0
    model(torch.ones(1, 4)).sum().backward()
    sam.second_step()
    ema.update(model, sam)
    assert torch.equal(ema.averages["weight"], model.weight)


def test_another_model_is_refused():
    ema = Ema(net())
    with pytest.raises(ValueError, match="the model must have the 9 entries that are averaged, got 2, 0.bias among the others; pass the module"):
        ema.update(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the state must have"):
        ema.load_state_dict({"step": 1, "averages": {}})
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1, got 1.0"):
        Ema(net(), decay=1.0)
