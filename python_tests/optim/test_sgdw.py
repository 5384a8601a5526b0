"""SGDW against the specification's numbers, the formula, timm, and the traps of other implementations."""

import copy
import pickle

import pytest
import torch
from optional import peer

import vtkernels as vt
from vtkernels.optim.sgdw import SGDW

SHAPES = [(3, 4), (5,), (2, 3, 2, 2), (0, 4), ()]


def parameters(dtype=torch.float64, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


def train(optimizer, params, steps, scheduler=None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p.square().sum() + 0.1 * p.pow(3).sum()).float() for p in params).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_golden():
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = SGDW([w], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (w.square().sum() + 0.1 * w.pow(3).sum()).backward()
        optimizer.step()
    golden = torch.tensor([0.006136299650009397, -0.16352272848815583, -0.2415317879578228], dtype=torch.float64)
    torch.testing.assert_close(w.detach(), golden, rtol=0, atol=1e-12)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_timm(momentum, nesterov, maximize, corrected):
    options = {"lr": 0.02, "momentum": momentum, "nesterov": nesterov, "maximize": maximize, "weight_decay": 0.1, "corrected_weight_decay": corrected}
    ours, theirs = parameters(), parameters()
    a, b = SGDW(ours, **options), peer("timm.optim.sgdw").SGDW(theirs, foreach=False, **options)
    train(a, ours, 5, torch.optim.lr_scheduler.ExponentialLR(a, 0.7))
    train(b, theirs, 5, torch.optim.lr_scheduler.ExponentialLR(b, 0.7))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)
    if momentum:
        torch.testing.assert_close(a.state[ours[0]]["momentum_buffer"], b.state[theirs[0]]["momentum_buffer"], rtol=1e-13, atol=1e-13)


def test_without_decay_it_is_sgd():
    ours, theirs = parameters(), parameters()
    train(SGDW(ours, lr=0.1, momentum=0.9, nesterov=True), ours, 4)
    train(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=True), theirs, 4)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


def test_mixed_dtypes_decay_once():
    params = [torch.ones(4, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32)]
    for p in params:
        p.grad = torch.zeros_like(p)
    SGDW(params, lr=0.5, weight_decay=0.5).step()
    for p in params:
        assert torch.equal(p, torch.full_like(p, 0.75))


def test_groups_have_their_own_rates_and_share_a_call(monkeypatch):
    calls = []
    monkeypatch.setattr("vtkernels.optim.sgdw.sgd_step_", lambda *args, **kwargs: (calls.append(args), vt.sgd_step_(*args, **kwargs)))
    decayed, plain, other = (torch.ones(3, requires_grad=True) for _ in range(3))
    groups = [{"params": [decayed]}, {"params": [plain], "weight_decay": 0.0, "lr": 0.25}, {"params": [other], "momentum": 0.5}]
    optimizer = SGDW(groups, lr=0.5, weight_decay=0.5)
    for p in (decayed, plain, other):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [len(call[0]) for call in calls] == [2, 1]
    assert decayed.tolist() == [0.25] * 3
    assert plain.tolist() == [0.75] * 3
    assert "momentum_buffer" in optimizer.state[other]
    assert "momentum_buffer" not in optimizer.state[plain]


@pytest.mark.parametrize("carry", [lambda state: copy.deepcopy(state), lambda state: pickle.loads(pickle.dumps(state))], ids=["copied", "pickled"])
def test_state_continues_to_the_bit(carry):
    whole, first = parameters(torch.float32), parameters(torch.float32)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "corrected_weight_decay": True}
    train(SGDW(whole, **options), whole, 6)
    before = SGDW(first, **options)
    train(before, first, 3)
    second = [p.detach().clone().requires_grad_() for p in first]
    after = SGDW(second, lr=1.0)
    after.load_state_dict(carry(before.state_dict()))
    train(after, second, 3)
    for p, q in zip(whole, second, strict=True):
        assert torch.equal(p, q)


def test_a_checkpoint_of_sgd_fits():
    params = parameters(torch.float32)
    before = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    train(before, params, 2)
    after = SGDW(params, lr=0.1, momentum=0.9)
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.state[params[0]]["momentum_buffer"], before.state[params[0]]["momentum_buffer"])
    train(after, params, 1)


def test_a_copy_is_an_optimizer_too():
    params = parameters(torch.float32)
    optimizer = SGDW(params, lr=0.1, momentum=0.9)
    train(optimizer, params, 1)
    copied = copy.deepcopy(optimizer)
    assert copied.param_groups[0]["max_lr"] == 0.1
    assert torch.equal(copied.state[copied.param_groups[0]["params"][0]]["momentum_buffer"], optimizer.state[params[0]]["momentum_buffer"])


def test_grad_scaler_is_obeyed_on_the_device():
    params, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, expected = SGDW(params, lr=0.1, momentum=0.9, weight_decay=0.1), SGDW(plain, lr=0.1, momentum=0.9, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for bad in (False, True, False):
        before, buffers = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])
        optimizer.zero_grad()
        scaler.scale(sum(p.square().sum() for p in params)).backward()
        if bad:
            params[1].grad[2] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf")
        if bad:
            assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
            assert all(torch.equal(optimizer.state_dict()["state"][i]["momentum_buffer"], state["momentum_buffer"]) for i, state in buffers.items())
        else:
            expected.zero_grad()
            sum(p.square().sum() for p in plain).backward()
            expected.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == 2.0**9


def test_scaler_that_unscaled_before():
    params = parameters(torch.float32)
    optimizer, scaler = SGDW(params, lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(sum(p.sum() for p in params)).backward()
    before = params[0].detach().clone()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    torch.testing.assert_close(params[0].detach(), before - 0.1)


def test_parameters_without_a_gradient_stay():
    moved, frozen = torch.ones(3, requires_grad=True), torch.ones(3)
    idle = torch.ones(3, requires_grad=True)
    optimizer = SGDW([moved, frozen, idle], lr=0.1, momentum=0.9, weight_decay=0.5)
    optimizer.step()
    moved.sum().backward()
    optimizer.step()
    assert frozen.tolist() == idle.tolist() == [1.0] * 3
    assert moved.tolist() != [1.0] * 3
    assert idle not in optimizer.state


def test_closure_returns_its_loss():
    w = torch.ones(2, requires_grad=True)
    optimizer = SGDW([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    torch.testing.assert_close(w.detach(), torch.full((2,), 0.8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "SGDW: lr must be at least 0 and finite, got -0.1"),
        ({"lr": float("nan")}, "SGDW: lr must be at least 0"),
        ({"weight_decay": -1.0}, "SGDW: weight_decay must be at least 0"),
        ({"momentum": 1.0}, "SGDW: momentum must be at least 0 and below 1, got 1.0"),
        ({"nesterov": True}, "SGDW: momentum must be positive with nesterov"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SGDW([torch.ones(2, requires_grad=True)], **options)
    optimizer = SGDW([torch.ones(2, requires_grad=True)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], **options})
    assert len(optimizer.param_groups) == 1


def test_sparse_and_complex_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="grads.0. must be dense"):
        SGDW(embedding.parameters()).step()
    number = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    number.grad = torch.ones_like(number)
    with pytest.raises(TypeError, match="must be real"):
        SGDW([number]).step()


@pytest.mark.parametrize("corrected", [False, True])
def test_sam_fuses_it(monkeypatch, corrected):
    """One op restores, decays and steps: the same as restoring first, then stepping; the optimizer's own step is not called."""
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "corrected_weight_decay": corrected}
    fused, apart = parameters(torch.float32), parameters(torch.float32)
    sam, alone = vt.optim.SAM(fused, SGDW, rho=0.1, **options), SGDW(apart, **options)
    climber = vt.optim.SAM(apart, torch.optim.SGD, rho=0.1, lr=0.0)
    own_step = SGDW.step
    for lr in (0.05, 0.02, 0.01):
        sam.param_groups[0]["lr"] = alone.param_groups[0]["lr"] = lr
        for params, optimizer in ((fused, sam), (apart, climber)):
            optimizer.zero_grad()
            sum(p.square().sum() for p in params).backward()
            with optimizer.perturbed():
                sum(p.square().sum() for p in params).backward()
        monkeypatch.setattr(SGDW, "step", lambda *args: pytest.fail("not fused"))
        sam.step()
        monkeypatch.setattr(SGDW, "step", own_step)
        alone.step()
    for p, q in zip(fused, apart, strict=True):
        assert torch.equal(p, q)
