"""How `vt.optim.SAM` is used: its three forms, groups, accumulation, schedulers, memory."""

import copy
import gc
import itertools
import math
import warnings

import pytest
import torch
from sam_problems import Golden, bits, mlp, of_each_base
from torch import nn

import vtkernels as vt


@of_each_base
def test_the_three_forms_are_one_step(base, options):
    ends = []
    for form in ("steps", "closure", "block"):
        golden = Golden()
        sam = vt.optim.SAM(golden.params, base, **options)
        for _ in range(3):
            golden.backward()
            if form == "steps":
                assert sam.first_step(zero_grad=True)
                golden.backward()
                sam.second_step(zero_grad=True)
            elif form == "closure":
                sam.step(golden.backward)
                sam.zero_grad()
            else:
                with sam.perturbed() as wanted:
                    assert wanted and golden.w.grad is None
                    golden.backward()
                sam.step()
                sam.zero_grad()
        ends.append(golden.values())
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("implementation", [{}, {"foreach": True}, {"foreach": False}], ids=["fused", "foreach", "loop"])
@of_each_base
def test_a_radius_of_zero_is_the_base_optimizer(base, options, implementation):
    """Bitwise, the base step being the same code; where SAM's is one op, torch rounds in another order."""
    if base is torch.optim.RMSprop and not implementation:
        implementation = {"foreach": None}
    model, plain = mlp(torch.float64), None
    plain = copy.deepcopy(model)
    x = torch.randn(5, 6, dtype=torch.float64)
    sam = vt.optim.SAM(model.parameters(), base, rho=0.0, **options, **implementation)
    bare = base(plain.parameters(), **options, **implementation)
    for _ in range(5):
        model(x).square().sum().backward()
        sam.step(lambda: model(x).square().sum().backward())
        sam.zero_grad()
        bare.zero_grad()
        plain(x).square().sum().backward()
        bare.step()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        if implementation:
            assert bits(found) == bits(expected)
        else:
            assert torch.allclose(found, expected, rtol=1e-13, atol=1e-15)


def test_groups_have_their_own_radius_under_one_norm():
    golden, still = Golden(), Golden()
    groups = [{"params": [golden.w], "rho": 0.5, "adaptive": True, "eta": 0.01}, {"params": [golden.b], "rho": 0.1, "adaptive": True}, {"params": still.params}]
    sam = vt.optim.SAM(groups, torch.optim.SGD, rho=0.0, lr=0.1)
    assert groups[2].keys() == {"params"}, "the caller's groups stay as they are"
    w, b = golden.w.detach().clone(), golden.b.detach().clone()
    (golden.loss() + still.loss()).backward()
    gw, gb, rest = golden.w.grad, golden.b.grad, torch.cat([param.grad.flatten() for param in still.params])
    norm = (((w.abs() + 0.01) * gw).square().sum() + (b.abs() * gb).square().sum() + rest.square().sum()).sqrt()
    sam.first_step()
    assert sam.norm.item() == pytest.approx(norm.item(), rel=1e-14)
    assert torch.allclose(golden.w, w + 0.5 * (w.abs() + 0.01) ** 2 * gw / norm, rtol=1e-14)
    assert torch.allclose(golden.b, b + 0.1 * b**2 * gb / norm, rtol=1e-14)
    assert still.values() == Golden().values()
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    sam.restore()
    sam.add_param_group({"params": [late], "rho": 1.0})
    late.grad = torch.full_like(late, 1e6)
    sam.first_step()
    assert late.tolist() == pytest.approx([1 + 0.5**0.5] * 2)


@pytest.mark.parametrize("pieces", [1, 4])
def test_accumulated_micro_batches_are_one_batch(pieces):
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    start = mlp(torch.float64)
    ends = []
    for chunks in (1, pieces):
        model = copy.deepcopy(start)
        sam = vt.optim.SAM(model.parameters(), torch.optim.AdamW, lr=0.01)

        def backward(model=model, chunks=chunks):
            for part_x, part_y in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
                ((model(part_x) - part_y).square().mean() / chunks).backward()

        for _ in range(5):
            backward()
            sam.step(backward)
            sam.zero_grad()
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


def test_frozen_parameters_are_left_alone():
    model = mlp()
    for param in model[0].parameters():
        param.requires_grad_(False)
    frozen = [bits(param) for param in model[0].parameters()]
    sam = vt.optim.SAM(model.parameters(), torch.optim.AdamW, lr=0.1)
    model(torch.randn(4, 6)).sum().backward()
    sam.first_step(zero_grad=True)
    assert [bits(param) for param in model[0].parameters()] == frozen
    assert len(sam._backups) == 2
    model(torch.randn(4, 6)).sum().backward()
    sam.second_step()
    assert [bits(param) for param in model[0].parameters()] == frozen and len(sam.state) == 2


def test_every_third_step_has_two_passes():
    golden, twin = Golden(), Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1, momentum=0.9, every=3)
    other = vt.optim.SAM(twin.params, torch.optim.SGD, lr=0.1, momentum=0.9, rho=0.0)
    pattern, calls = [], []
    for i in range(7):
        golden.backward()
        if i % 2:
            with sam.perturbed() as wanted:
                # a block that does not ask runs its pass for nothing
                ((1 if wanted else 5) * golden.loss()).backward()
            sam.step()
            pattern.append(wanted)
        else:
            before = len(calls)
            sam.step(lambda: (calls.append(1), golden.backward()))
            pattern.append(len(calls) > before)
        sam.zero_grad()
        other.param_groups[0]["rho"] = 0.05 if i % 3 == 0 else 0.0
        twin.backward()
        other.step(twin.backward)
        other.zero_grad()
        assert golden.values() == pytest.approx(twin.values(), rel=1e-14)
        if i == 3:
            # what step is next is in the checkpoint
            state = copy.deepcopy(sam.state_dict())
            sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1, momentum=0.9, every=3)
            sam.load_state_dict(state)
    assert pattern == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("attach", ["sam", "base"])
@pytest.mark.parametrize("form", ["steps", "closure", "block"])
def test_learning_rate_schedulers(attach, form):
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sam if attach == "sam" else sam.base_optimizer, T_max=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(4):
            assert sam.param_groups[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * i / 4)))
            before = golden.values()
            golden.backward()
            if form == "steps":
                sam.first_step(zero_grad=True)
                golden.backward()
                moved = 0.1 * golden.b.grad
                sam.second_step(zero_grad=True)
            elif form == "closure":
                sam.step(golden.backward)
            else:
                with sam.perturbed():
                    golden.backward()
                sam.step()
            if form == "steps":
                expected = torch.tensor(before[4:]).double() - sam.param_groups[0]["lr"] / 0.1 * moved
                assert golden.b.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
            sam.zero_grad()
            scheduler.step()
    assert sam.param_groups[0]["lr"] == pytest.approx(0.0)


def held_bytes() -> int:
    gc.collect()
    # storages, each once
    storages = {}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, nn.Parameter) and found.layout == torch.strided:
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


def test_one_extra_copy_of_the_parameters_is_held():
    model = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 100))
    x = torch.randn(2, 300)
    size = sum(param.numel() * param.element_size() for param in model.parameters())
    before = held_bytes()
    sam = vt.optim.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    for _ in range(2):
        model(x).sum().backward()
        sam.step(lambda: model(x).sum().backward())
        sam.zero_grad()
    assert size <= held_bytes() - before < size + 100


def test_hooks_of_the_base_optimizer_see_its_step():
    golden, seen = Golden(), []
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1)
    start = golden.values()
    sam.base_optimizer.register_step_pre_hook(lambda *_: seen.append(golden.values()))
    golden.backward()
    sam.step(golden.backward)
    assert seen == [start], "called once, with restored weights"


def test_named_parameters_and_strange_shapes():
    shapes = [(0,), (), (1,), (3, 0, 2), (5, 7), (2, 3, 4, 5)]
    named = [(f"p{i}", nn.Parameter(torch.randn(shape))) for i, shape in enumerate(shapes)]
    named.append(("last", nn.Parameter(torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last))))
    named.append(("transposed", nn.Parameter(torch.randn(5, 3).t())))
    params = [param for _, param in named]
    for form in (params, named):
        start = [param.detach().clone() for param in params]
        sam = vt.optim.SAM(form, torch.optim.AdamW, lr=0.01)
        for param in params:
            param.grad = torch.randn(param.shape)
        sam.first_step(zero_grad=True)
        assert all(not torch.equal(param, old) for param, old in itertools.islice(zip(params, start, strict=True), 4, None))
        sam.restore()
        assert all(torch.equal(param, old) for param, old in zip(params, start, strict=True))
