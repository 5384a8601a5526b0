"""Where `vt.optim.SAM` meets what is around it: tied weights, other orders of calls, models that outlive it, distributed checkpoints."""

import copy
import gc
import warnings

import numpy
import pytest
import torch
from sam_problems import Golden, bits, mlp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import vtkernels as vt


def golden_sam(**options):
    golden = Golden()
    return golden, vt.optim.SAM(golden.params, torch.optim.SGD, **({"lr": 0.1, "rho": 0.5} | options))


@pytest.mark.parametrize("way", ["tensors", "names", "group", "later"])
def test_tied_weights_listed_twice_are_one(way):
    golden, twin = Golden(), Golden()
    twice = [golden.w, golden.b, golden.w]
    with pytest.warns(UserWarning, match="SAM: a parameter is listed twice"):
        if way == "later":
            sam = vt.optim.SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, lr=0.1, rho=0.5)
            sam.add_param_group({"params": twice})
        else:
            params = {"tensors": twice, "names": list(zip("abc", twice, strict=True)), "group": [{"params": twice}]}[way]
            sam = vt.optim.SAM(params, torch.optim.SGD, lr=0.1, rho=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = vt.optim.SAM(twin.params, torch.optim.SGD, lr=0.1, rho=0.5)
    assert list(map(id, sam.param_groups[-1]["params"])) == list(map(id, golden.params))
    for problem, optimizer in ((golden, sam), (twin, once)):
        for _ in range(2):
            optimizer.zero_grad()
            problem.backward()
            optimizer.step(problem.backward)
    assert golden.values() == twin.values()


def test_a_step_left_out_after_the_block_does_not_lock_the_closure_out():
    golden, sam = golden_sam()
    golden.backward()
    with sam.perturbed():
        golden.backward()
    with pytest.raises(RuntimeError, match="that step is forgotten now: zero the gradients and begin again"):
        sam.step(golden.backward)
    start = golden.values()
    sam.zero_grad()
    golden.backward()
    sam.step(golden.backward)
    assert golden.values() != start


def test_a_closure_after_first_step_said_no_is_not_called():
    golden, sam = golden_sam(every=2)
    golden.backward()
    sam.step(golden.backward)
    sam.zero_grad()
    golden.backward()
    expected = [value - 0.1 * grad for value, grad in zip(golden.values(), [*golden.w.grad.flatten().tolist(), *golden.b.grad.tolist()], strict=True)]
    assert not sam.first_step()
    assert sam.step(lambda: pytest.fail("called")) is None
    assert golden.values() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("form", ["step", "closure", "block", "steps"])
@pytest.mark.parametrize("kind", [vt.optim.SAM, vt.optim.GSAM, vt.optim.LookSAM, vt.optim.FriendlySAM])
def test_not_enabled_it_is_the_base_optimizer(kind, form):
    golden, plain = Golden(), Golden()
    sam, bare = kind(golden.params, torch.optim.SGD, lr=0.1, foreach=False), torch.optim.SGD(plain.params, lr=0.1, foreach=False)

    def step(sam, form):
        sam.zero_grad()
        golden.backward()
        if form == "steps":
            sam.first_step()
            sam.second_step()
        elif form == "block":
            with sam.perturbed():
                pass
            sam.step()
        else:
            sam.step(*([golden.backward] if form == "closure" else []))

    step(sam, "closure")
    with torch.no_grad():
        for target, source in zip(plain.params, golden.params, strict=True):
            target.copy_(source)
    golden.backward()
    sam.first_step()
    sam.enabled = False
    assert golden.values() == plain.values(), "a step under way is given up"
    copied = copy.deepcopy(sam)
    assert not copied.enabled
    for _ in range(2):
        step(sam, form)
        bare.zero_grad()
        plain.backward()
        bare.step()
    assert golden.values() == plain.values()
    sam.enabled = True
    with pytest.raises(RuntimeError, match="needs a closure"):
        sam.step()


def test_a_parameter_frozen_after_its_backward_is_not_perturbed():
    golden, sam = golden_sam()
    golden.backward()
    golden.w.requires_grad_(False)
    start = bits(golden.w), bits(golden.b)
    sam.first_step()
    assert bits(golden.w) == start[0] and bits(golden.b) != start[1]
    assert sam.norm.item() == pytest.approx(golden.b.grad.norm().item())


def test_numbers_of_numpy():
    golden, sam = golden_sam(rho=numpy.float32(0.5))
    twin, same = golden_sam()
    for problem, optimizer in ((golden, sam), (twin, same)):
        problem.backward()
        optimizer.first_step()
    assert golden.values() == twin.values()
    sam.restore()
    sam.param_groups[0]["rho"] = numpy.float64(0.25)
    sam.first_step()


def test_a_model_that_outlives_its_optimizers_carries_no_hooks():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(4, 3)).sum().backward()
    for _ in range(3):
        sam = vt.optim.SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model)
        # a model may hold its optimizer
        model.sam = sam
        sam.first_step()
        sam.restore()
        assert len(model._forward_pre_hooks) == len(model[0].weight._post_accumulate_grad_hooks) == 1
        del sam, model.sam
        gc.collect()
        assert not model._forward_pre_hooks and not model[0].weight._post_accumulate_grad_hooks


def test_layers_added_later_keep_the_statistics_of_pass_one():
    model = nn.Sequential(nn.Linear(3, 3))
    sam = vt.optim.SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model)
    model.append(nn.BatchNorm1d(3))
    x = torch.randn(4, 3)
    model(x).square().sum().backward()
    first = bits(model[1].running_mean)
    sam.step(lambda: model(x).square().sum().backward())
    assert bits(model[1].running_mean) == first and model[1].num_batches_tracked == 1


def test_hooks_of_esam_are_called_once_a_step():
    _, _ = golden_sam()
    golden = Golden()
    esam, calls = vt.optim.ESAM(golden.params, torch.optim.SGD, lr=0.1), []
    esam.register_step_post_hook(lambda *_: calls.append(1))
    esam.both_passes(lambda chosen: golden.loss()[None])
    esam.step()
    assert calls == [1]
    esam.step(lambda chosen: golden.loss()[None])
    assert calls == [1, 1]


@pytest.mark.parametrize("whose", ["base optimizer", "not enabled"])
def test_distributed_checkpoints(whose):
    model, x = mlp(), torch.randn(4, 6)
    sam = vt.optim.SAM(model.parameters(), torch.optim.AdamW, lr=0.01)
    model(x).sum().backward()
    sam.step(lambda: model(x).sum().backward())
    saved = copy.deepcopy(get_optimizer_state_dict(model, sam.base_optimizer))
    fresh = vt.optim.SAM(model.parameters(), torch.optim.AdamW, lr=0.5)
    before = [bits(param) for param in model.parameters()]
    sam.zero_grad()
    fresh.enabled = whose == "base optimizer"
    set_optimizer_state_dict(model, fresh.base_optimizer if fresh.enabled else fresh, saved)
    assert [bits(param) for param in model.parameters()] == before
    assert fresh.param_groups[0]["lr"] == 0.01
    assert all(bits(fresh.state[param]["exp_avg"]) == bits(sam.state[param]["exp_avg"]) for param in model.parameters())
    fresh.enabled = True
    model(x).sum().backward()
    fresh.step(lambda: model(x).sum().backward())
    assert [bits(param) for param in model.parameters()] != before
