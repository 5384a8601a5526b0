"""Errors around a step of `vt.optim.SAM`: what they say, and that they leave no parameter perturbed."""

import math

import pytest
import torch
from sam_problems import Golden
from torch import nn

import vtkernels as vt


@pytest.mark.parametrize("form", ["closure", "block", "bad gradient", "bad base step"])
def test_an_error_in_the_second_pass_leaves_nothing_perturbed(form, monkeypatch):
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.RMSprop if form == "bad base step" else torch.optim.SGD, lr=0.1)
    start = golden.values()

    def fails():
        golden.backward()
        assert golden.values() != start
        raise KeyError("data loader")

    golden.backward()
    if form == "closure":
        with pytest.raises(KeyError, match="data loader"):
            sam.step(fails)
    elif form == "block":
        with pytest.raises(KeyError, match="data loader"), sam.perturbed():
            fails()
    elif form == "bad gradient":
        sam.first_step(zero_grad=True)
        golden.backward()
        golden.b.grad = golden.b.grad.to_sparse()
        with pytest.raises(TypeError, match="must be dense"):
            sam.second_step()
    else:
        monkeypatch.setattr(torch.optim.RMSprop, "step", lambda self: {}["state"])
        sam.first_step(zero_grad=True)
        golden.backward()
        with pytest.raises(KeyError, match="state"):
            sam.second_step()
        monkeypatch.undo()
    assert golden.values() == start
    with pytest.raises(RuntimeError, match="second_step must follow first_step"):
        sam.second_step()
    sam.zero_grad()
    golden.backward()
    sam.step(golden.backward)
    assert golden.values() != start


@pytest.mark.parametrize("kind", ["sparse", "complex", "radius", "policy"])
@pytest.mark.parametrize("eta", [0.0, 0.01], ids=["one call", "two calls"])
def test_an_error_in_first_step_leaves_nothing_perturbed(kind, eta, monkeypatch):
    golden = Golden()
    model = nn.Linear(2, 2)
    model.extra = nn.ParameterList(golden.params)
    bad = nn.Parameter(torch.ones(3, dtype=torch.complex128 if kind == "complex" else torch.float64))
    # another eta takes another call of the op, after that for the others
    groups = [{"params": golden.params}, {"params": [bad], "eta": eta}]
    sam = vt.optim.SAM(groups, torch.optim.SGD, lr=0.1, model=model, adaptive=True)
    start = golden.values()
    golden.backward()
    bad.grad = torch.ones_like(bad)
    if kind == "sparse":
        bad.grad = bad.grad.to_sparse()
    if kind == "policy":
        monkeypatch.setattr(sam._passes, "enter_second", lambda: 1 / 0)
    if kind == "radius":
        sam.param_groups[1]["rho"] = -1.0
    error, message = {"policy": (ZeroDivisionError, "zero"), "radius": (ValueError, "rho must be at least 0")}.get(kind, (TypeError, "dense|real"))
    with pytest.raises(error, match=message):
        sam.first_step()
    assert golden.values() == start


def test_a_step_given_up_is_undone_by_the_next():
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1)
    start = golden.values()
    golden.backward()
    sam.first_step()
    climbed = golden.values()
    sam.first_step()
    assert golden.values() == climbed, "not climbed twice"
    sam.restore()
    assert golden.values() == start


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rho": -0.1}, ValueError, "rho must be at least 0 and finite, got -0.1; SAM's paper uses 0.05"),
        ({"rho": math.nan}, ValueError, "rho must be at least 0 and finite, got nan"),
        ({"rho": math.inf}, ValueError, "rho must be at least 0 and finite, got inf"),
        ({"eta": -1.0}, ValueError, "eta must be at least 0"),
        ({"perturb_eps": -1.0}, ValueError, "perturb_eps must be at least 0"),
        ({"every": 0}, ValueError, "every must be an int of at least 1, got 0"),
        ({"every": 1.5}, ValueError, "every must be an int"),
        ({"sync": "all"}, ValueError, "sync must be one of local, global, got 'all'"),
        ({"batchnorm": "none", "model": nn.Linear(1, 1)}, ValueError, "batchnorm must be one of first, second, both"),
        ({"batchnorm": "first"}, ValueError, "model must be given with batchnorm, got None; pass model=model"),
        ({"same_rng": True}, ValueError, "model must be given with same_rng"),
        ({"model": "vit"}, TypeError, "model must be a torch.nn.Module"),
        ({"model": type("FullyShardedDataParallel", (nn.Module,), {})()}, TypeError, "must be sharded with torch.distributed.fsdp.fully_shard"),
        ({"params": []}, ValueError, "params must hold at least one parameter"),
        ({"params": iter([])}, ValueError, "was a generator used up before"),
        ({"params": [{"params": []}]}, ValueError, "params must hold at least one parameter"),
        ({"params": torch.zeros(3)}, TypeError, r"try \[params\]"),
        ({"params": [{"params": [nn.Parameter(torch.ones(1))], "rho": -1.0}]}, ValueError, "rho must be at least 0"),
        ({"base_optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)}, TypeError, "got an instance of SGD; pass the class"),
        ({"nesterow": True}, TypeError, "nesterow"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, error, message):
    arguments = {"params": [nn.Parameter(torch.ones(2))], "base_optimizer": torch.optim.SGD, "lr": 0.1} | arguments
    with pytest.raises(error, match=message):
        vt.optim.SAM(**arguments)


def test_steps_in_a_wrong_order_say_what_to_do():
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1)
    start = golden.values()
    golden.backward()
    with pytest.raises(RuntimeError, match=r"step\(\) needs a closure .*`with sam.perturbed\(\)"):
        sam.step()
    with pytest.raises(RuntimeError, match="second_step must follow first_step"):
        sam.second_step()
    sam.param_groups[0]["rho"] = -1.0
    with pytest.raises(ValueError, match="rho must be at least 0"):
        sam.first_step()
    assert golden.values() == start


def test_parameters_on_several_devices_need_several_optimizers():
    here, there = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    sam = vt.optim.SAM([here, there], torch.optim.SGD, lr=0.1)
    here.grad, there.grad = torch.ones(2), torch.ones(2, device="meta")
    with pytest.raises(ValueError, match=r"must be on one device \(cpu\), got meta; make one SAM for each device"):
        sam.first_step()
    assert here.tolist() == [1.0, 1.0]
