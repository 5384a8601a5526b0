"""ASAM, GSAM and SAM in every k-th step, against their formulas on one flat vector, and their invariants."""

import copy

import pytest
import torch
from sam_problems import bits
from torch import nn
from variants_literal import SGD, Momentum, Task, assert_close, every_way, train

from vtkernels.optim import ASAM, ESAM, GSAM, SAM, FriendlySAM, LookSAM

# ---- ASAM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_asam_formula(eta):
    task = Task()
    stretched = torch.cat([torch.full((param.numel(),), float(param.dim() > 1), dtype=torch.float64) for param in task.params])
    w, base = task.flat(), Momentum()
    for t in range(5):
        g = task.gradient(w, t)
        stretch = torch.where(stretched > 0, w.abs() + eta, 1.0)
        eps = 0.5 * stretch**2 * g / ((stretch * g).norm() + 1e-16)
        w = base.step(w, task.gradient(w + eps, t))
    train(ASAM(task.params, eta=eta, **SGD), task, range(5))
    assert_close(task, w)


@pytest.mark.parametrize("c", [8.0, 0.01])
def test_asam_does_not_see_a_rescaling_of_two_layers(c):
    """relu(x (c w1)) (w2 / c) is the same function: with eta = 0 it has the same neighbourhood too."""
    first, second = torch.randn(6, 9, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    x = torch.randn(16, 6, dtype=torch.float64)
    perturbed = []
    for factor in (1.0, c):
        params = [(first * factor).requires_grad_(), (second / factor).requires_grad_()]
        asam = ASAM(params, torch.optim.SGD, rho=0.5, eta=0.0, lr=0.1)

        def loss(params=params):
            return (torch.relu(x @ params[0]) @ params[1]).square().mean()

        loss().backward()
        asam.first_step()
        perturbed.append(loss().item())
    assert perturbed[0] == pytest.approx(perturbed[1], rel=1e-12)


def test_asam_defaults_and_groups():
    weight, bias, plain = (torch.ones(shape, requires_grad=True) for shape in ((2, 2), (2,), (2, 2)))
    asam = ASAM([{"params": [weight, bias]}, {"params": [plain], "adaptive": False, "rho": 0.1}], torch.optim.SGD, lr=0.1)
    assert [(group["rho"], group["eta"], group["adaptive"]) for group in asam.param_groups] == [(0.5, 0.01, True), (0.1, 0.01, False)]
    assert [asam._neighbourhood(asam.param_groups[i], p)[1] for i, p in ((0, weight), (0, bias), (1, plain))] == [True, False, False]
    assert asam.perturb_eps == 1e-16


# ---- GSAM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", every_way)
@pytest.mark.parametrize("minimize_fp", [True, False])
def test_gsam_formula(minimize_fp, way):
    task, rates = Task(), [0.01, 0.05, 0.03, 0.0005, 0.0]
    w, base = task.flat(), Momentum()
    for t, lr in enumerate(rates):
        rho = 0.1 + (0.4 - 0.1) * (lr - 0.0005) / (0.05 - 0.0005)
        g = task.gradient(w, t)
        p = task.gradient(w + rho * g / (g.norm() + 1e-12), t)
        unit_p, unit_g = p / p.norm(), g / g.norm()
        base.lr = lr
        w = base.step(w, p - 0.6 * (g - (g @ unit_p) * unit_p) if minimize_fp else g + 0.6 * (p - (p @ unit_g) * unit_g))
    gsam = GSAM(task.params, rho_max=0.4, rho_min=0.1, minimize_fp=minimize_fp, **SGD)

    def set_lr(t):
        gsam.param_groups[0]["lr"] = rates[t]

    train(gsam, task, range(5), way, on_step=set_lr)
    assert_close(task, w)


def test_gsam_leaves_the_part_along_the_perturbed_gradient():
    task = Task()
    gsam = GSAM(task.params, rho_max=2.0, **SGD)
    task.loss(0).backward()
    clean = torch.cat([param.grad.flatten() for param in task.params])
    with gsam.perturbed():
        task.loss(0).backward()
        perturbed = torch.cat([param.grad.flatten() for param in task.params])
    change = torch.cat([param.grad.flatten() for param in task.params]) - perturbed
    assert change.norm() > 0.01 * clean.norm()
    assert abs(change @ perturbed) < 1e-13 * perturbed.norm() ** 2


def test_gsam_without_alpha_is_sam_to_the_bit():
    tasks = [Task(torch.float32), Task(torch.float32)]
    train(GSAM(tasks[0].params, rho_max=0.2, rho_min=0.2, alpha=0.0, **SGD), tasks[0], range(4))
    train(SAM(tasks[1].params, rho=0.2, **SGD), tasks[1], range(4))
    assert bits(tasks[0].flat()) == bits(tasks[1].flat())


def test_gsam_radius():
    groups = [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "lr": 0.2}]
    gsam = GSAM(groups, torch.optim.SGD, rho_max=0.6, rho_min=0.1, lr=1.0)
    for factor, expected in ((1.0, 0.6), (0.505, 0.35), (0.01, 0.1), (0.0, 0.1), (2.0, 0.6)):
        gsam.param_groups[0]["lr"], gsam.param_groups[1]["lr"] = factor, 0.2 * factor
        assert [gsam.rho_of(group) for group in gsam.param_groups] == pytest.approx([expected] * 2)
    peak = GSAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, lr=0.1, momentum=0.9)
    schedule, radii = torch.optim.lr_scheduler.OneCycleLR(peak, max_lr=1.0, total_steps=11, pct_start=0.3), []
    for _ in range(10):
        radii.append(peak.rho_of(peak.param_groups[0]))
        peak._opt_called = True
        schedule.step()
    assert max(radii) == pytest.approx(0.6, abs=0.02) and radii[0] < 0.2 and min(radii) >= 0.1
    given = GSAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, rho_max=0.6, rho_min=0.0, lr_max=2.0, lr_min=1.0, lr=1.5)
    assert given.rho_of(given.param_groups[0]) == pytest.approx(0.3)
    given.param_groups[0]["lr"] = 0.5
    assert given.rho_of(given.param_groups[0]) == 0.0
    given.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr_max": 3.0})
    assert (given.param_groups[1]["lr_max"], given.param_groups[1]["lr_min"]) == (3.0, 1.0)


def test_gsam_resumes_its_schedule():
    whole, first = Task(torch.float32), Task(torch.float32)

    def gsam_of(task, lr=0.05):
        return GSAM(task.params, torch.optim.AdamW, lr=lr)

    def halve(gsam):
        def on_step(t):
            gsam.param_groups[0]["lr"] = 0.05 / 2**t

        return on_step

    one = gsam_of(whole)
    train(one, whole, range(6), on_step=halve(one))
    before = gsam_of(first)
    train(before, first, range(3), on_step=halve(before))
    after = gsam_of(first, lr=1.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, first, range(3, 6), on_step=halve(after))
    assert bits(whole.flat()) == bits(first.flat())


@pytest.mark.parametrize("minimize_fp", [True, False])
@pytest.mark.parametrize("scale", [2.0**12, 2.0**-6])
def test_gsam_under_a_scaler(scale, minimize_fp):
    plain, scaled = Task(torch.float32), Task(torch.float32)
    train(GSAM(plain.params, minimize_fp=minimize_fp, **SGD), plain, range(4))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    train(GSAM(scaled.params, minimize_fp=minimize_fp, **SGD), scaled, range(4), scaler=scaler)
    torch.testing.assert_close(scaled.flat(), plain.flat(), rtol=1e-5, atol=1e-6)


def test_gsam_does_not_mix_gradients_of_two_scales():
    task = Task(torch.float32)
    gsam, scaler = GSAM(task.params, **SGD), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = bits(task.flat())
    scaler.scale(task.loss(0)).backward()
    gsam.first_step(zero_grad=True)
    scaler.scale(task.loss(0)).backward()
    scaler.unscale_(gsam)
    with pytest.raises(RuntimeError, match="GSAM: the gradients of pass two must have the scale of those of pass one"):
        scaler.step(gsam)
    assert bits(task.flat()) == before


# ---- every k-th step, and what all variants share ------------------------------------------------------------------------


def test_sam_in_every_third_step():
    task, calls = Task(), []
    w, base = task.flat(), Momentum()
    for t in range(7):
        g = task.gradient(w, t)
        w = base.step(w, task.gradient(w + 0.1 * g / (g.norm() + 1e-12), t) if t % 3 == 0 else g)
    sam = SAM(task.params, rho=0.1, every=3, **SGD)
    for t in range(7):
        sam.zero_grad()
        task.loss(t).backward()
        sam.step(lambda t=t: (calls.append(t), task.loss(t).backward()))
    assert calls == [0, 3, 6]
    assert_close(task, w)


VARIANTS = {
    "ASAM": (ASAM, {}),
    "GSAM": (GSAM, {}),
    "GSAM, loss": (GSAM, {"minimize_fp": False}),
    "LookSAM": (LookSAM, {"k": 2}),
    "FriendlySAM": (FriendlySAM, {}),
    "ESAM": (ESAM, {}),
}
every_variant = pytest.mark.parametrize(("kind", "options"), VARIANTS.values(), ids=VARIANTS)


@every_variant
@pytest.mark.parametrize("overflow", [(1,), (2,), (1, 2)], ids=["in pass one", "in pass two", "in both"])
def test_an_overflow_skips_the_step_and_leaves_no_trace(kind, options, overflow):
    task = Task(torch.float32)
    sam, scaler = kind(task.params, **options, **SGD), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    train(sam, task, range(2), scaler=scaler)
    held = copy.deepcopy(sam.state_dict()["state"])
    before = bits(task.flat())
    sam.zero_grad()
    scaler.scale(task.loss(2)).backward()
    if 1 in overflow:
        task.params[0].grad[1, 2] = float("inf")
    with sam.perturbed():
        scaler.scale(task.loss(2)).backward()
        if 2 in overflow:
            task.params[2].grad[0, 1] = float("nan")
    scaler.step(sam)
    scaler.update()
    assert bits(task.flat()) == before
    assert scaler.get_scale() == 512.0
    for i, state in sam.state_dict()["state"].items():
        for name, value in state.items():
            # the mean of friendly SAM is one of pass one's gradients
            if not (name == "friendly_sam" and overflow == (2,)):
                assert bits(value) == bits(held[i][name]), name
    train(sam, task, range(3, 6), scaler=scaler)
    assert task.flat().isfinite().all()


@every_variant
def test_copies_and_checkpoints_continue_to_the_bit(kind, options):
    # torch's own AdamW sets its state up only where a parameter has none of any name
    base = {"base_optimizer": torch.optim.AdamW, "lr": 0.01, "foreach": True}
    whole, first = Task(torch.float32), Task(torch.float32)
    train(kind(whole.params, **options, **base), whole, range(7))
    before = kind(first.params, **options, **base)
    train(before, first, range(3))
    copied_sam, copied_task = copy.deepcopy((before, first))
    after = kind(first.params, **options, **base)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, first, range(3, 7))
    train(copied_sam, copied_task, range(3, 7))
    assert bits(whole.flat()) == bits(first.flat()) == bits(copied_task.flat())


@every_variant
def test_a_state_dict_shares_nothing_after_loading(kind, options):
    first, second = Task(torch.float32), Task(torch.float32)
    sams = [kind(task.params, **options, **SGD) for task in (first, second)]
    train(sams[0], first, range(2))
    held = copy.deepcopy(sams[0].state_dict())
    assert {name for state in held["state"].values() for name in state} == {"momentum_buffer"}
    assert held.keys() - {"state", "param_groups"} == {getattr(kind, "memory_name", None)} - {None}
    sams[1].load_state_dict(copy.deepcopy(held))
    train(sams[1], second, range(2, 4))
    for i, state in sams[0].state_dict()["state"].items():
        assert all(bits(value) == bits(held["state"][i][name]) for name, value in state.items())
    if memory := getattr(kind, "memory_name", None):
        assert all(bits(value) == bits(held[memory][i]) for i, value in sams[0].state_dict()[memory].items())
    # the plain optimizer reads it, and makes a step with it
    plain = SGD["base_optimizer"](first.params, lr=0.1, momentum=0.9)
    plain.load_state_dict(held)
    first.loss(0).backward()
    plain.step()


@every_variant
def test_an_exception_in_pass_two_restores(kind, options):
    task = Task(torch.float32)
    sam, before = kind(task.params, **options, **SGD), bits(task.flat())
    task.loss(0).backward()
    with pytest.raises(KeyError), sam.perturbed():
        raise KeyError
    assert bits(task.flat()) == before
    train(sam, task, range(2))


@every_variant
def test_unused_and_frozen_parameters(kind, options):
    """One without a gradient in pass two, one that never has one, one that is frozen."""
    used, once, never = (torch.ones(3, 2, requires_grad=True) for _ in range(3))
    frozen = torch.ones(3, 2)
    sam = kind([used, once, never, frozen], **options, **SGD)
    for _ in range(3):
        sam.zero_grad()
        ((used + 1).square().sum() + (once.square().sum() if sam.two_passes_wanted else 0)).backward()
        with sam.perturbed():
            (used + 1).square().sum().backward()
        sam.step()
    assert all(torch.equal(tensor, torch.ones(3, 2)) for tensor in (once, never, frozen))
    assert used.isfinite().all()
    assert not torch.equal(used, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (GSAM, {"alpha": -1.0}, ValueError, "GSAM: alpha must be at least 0 and finite, got -1.0"),
        (GSAM, {"rho_min": float("nan")}, ValueError, "GSAM: rho_min must be at least 0"),
        (GSAM, {"rho": 0.1}, TypeError, "GSAM: rho must be given as rho_max and rho_min"),
        (GSAM, {"sync": "local"}, ValueError, "GSAM: sync must be global"),
        (LookSAM, {"sync": "local"}, ValueError, "LookSAM: sync must be global"),
        (LookSAM, {"k": 0}, ValueError, "every must be an int of at least 1"),
        (LookSAM, {"every": 2}, TypeError, "LookSAM: every must be given as k"),
        (LookSAM, {"alpha": float("inf")}, ValueError, "LookSAM: alpha must be"),
        (FriendlySAM, {"sigma": -1.0}, ValueError, "FriendlySAM: sigma must be"),
        (FriendlySAM, {"lmbda": 1.0}, ValueError, "FriendlySAM: lmbda must be at least 0 and below 1"),
        (ESAM, {"beta": 0.0}, ValueError, "ESAM: beta must be above 0 and at most 1"),
        (ESAM, {"gamma": 1.5}, ValueError, "ESAM: gamma must be above 0 and at most 1"),
        (ASAM, {"rho": -1.0}, ValueError, "rho must be at least 0"),
    ],
)
def test_bad_options(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind([torch.ones(2, requires_grad=True)], **options, **SGD)
