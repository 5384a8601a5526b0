"""Backups and state that no longer fit their parameter: nothing of another shape may reach a kernel, which walks all side by side."""

import pytest
import torch
from sam_problems import Golden, of_each_base
from torch import nn

import vtkernels as vt
from vtkernels.optim import sam as sam_module

BIG = 4099


def step(sam, backward) -> None:
    sam.zero_grad()
    backward()
    sam.step(backward)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, vt.optim.SGDW])
def test_a_checkpoint_of_another_model_is_refused(base):
    options = {"lr": 0.1} if base is torch.optim.AdamW else {"lr": 0.1, "momentum": 0.9}
    small, big = nn.Parameter(torch.ones(10)), nn.Parameter(torch.ones(BIG))
    there, here = (vt.optim.SAM([param], base, **options) for param in (small, big))
    step(there, lambda: small.sum().backward())
    here.load_state_dict(there.state_dict())
    with pytest.raises((RuntimeError, ValueError), match="size|shape"):
        step(here, lambda: big.square().sum().backward())
    assert torch.equal(big, torch.ones(BIG)), "restored"


def test_a_parameter_resized_between_steps_gets_a_new_backup():
    param = nn.Parameter(torch.ones(10))
    sam = vt.optim.SAM([param], torch.optim.SGD, lr=0.1)
    step(sam, lambda: param.sum().backward())
    param.data = torch.ones(BIG)
    step(sam, lambda: param.sum().backward())
    assert torch.allclose(param, torch.full((BIG,), 0.9))


@pytest.mark.parametrize("change", [lambda data: torch.zeros(10), lambda data: data.double()], ids=["shape", "dtype"])
def test_a_parameter_changed_between_the_passes_is_an_error(change):
    other, param = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(BIG))
    sam = vt.optim.SAM([other, param], torch.optim.SGD, lr=0.1)
    (other.sum() + param.sum()).backward()
    sam.first_step(zero_grad=True)
    param.data = change(param.data)
    changed = param.detach().clone()
    (other.sum() + param.sum()).backward()
    with pytest.warns(UserWarning, match="left as they are"), pytest.raises(RuntimeError, match="must keep their shape, dtype and device"):
        sam.second_step()
    assert other.tolist() == [1.0, 1.0, 1.0] and torch.equal(param, changed)
    step(sam, lambda: (other.sum() + param.sum()).backward())
    assert not torch.equal(param, changed), "the next step is as any"


@of_each_base
def test_a_layout_changed_after_the_first_step_is_followed(base, options, monkeypatch):
    """Backups and state take the parameter's strides, or every step would fall back to the reference."""
    seen = []
    real = sam_module.sam_perturb_
    monkeypatch.setattr(
        sam_module, "sam_perturb_", lambda params, *rest, **more: (seen.append((params[0].stride(), rest[1][0].stride())), real(params, *rest, **more))[1]
    )
    ends = []
    for late in (False, True):
        torch.manual_seed(0)
        model = nn.Conv2d(4, 6, 3)
        x = torch.randn(2, 4, 5, 5)
        sam = vt.optim.SAM(model.parameters(), base, **options)
        for i in range(3):
            if late and i == 1:
                model.to(memory_format=torch.channels_last)
            step(sam, lambda model=model, x=x: model(x).square().mean().backward())
        ends.append(model.weight.detach().contiguous())
    assert seen[-1][0] == seen[-1][1] == (36, 1, 12, 4)
    if base is not torch.optim.RMSprop:
        assert all(value.stride() == model.weight.stride() for value in sam.state[model.weight].values() if value.dim())
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-6)


def test_betas_may_be_a_list():
    golden, same = Golden(), Golden()
    lists = vt.optim.SAM(golden.params, torch.optim.AdamW, lr=0.1, betas=[0.8, 0.9])
    state = lists.state_dict()
    state["param_groups"][0]["betas"] = [0.8, 0.9]
    lists.load_state_dict(state)
    tuples = vt.optim.SAM(same.params, torch.optim.AdamW, lr=0.1, betas=(0.8, 0.9))
    for _ in range(2):
        step(lists, golden.backward)
        step(tuples, same.backward)
    assert golden.values() == same.values()
