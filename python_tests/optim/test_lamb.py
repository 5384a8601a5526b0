"""LAMB against the specification's numbers, timm, and what must hold at zero, in half precision and under a scaler."""

import copy

import pytest
import torch
from optional import peer

from vtkernels.optim.lamb import LAMB

SHAPES = [(3, 4), (300,), (2, 3, 2, 2), (0, 4), ()]


def parameters(dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


def loss_of(params) -> torch.Tensor:
    return sum((p.square().sum() + 0.1 * p.pow(3).sum()).float() for p in params)


def train(optimizer, params, steps) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(params).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("limit", "golden"),
    [(1.0, [0.14282714902799248, -0.6353954554303538, 1.6313224944553941]), (None, [0.14419998240697166, -0.6349573625949974, 1.6304925322246935])],
    ids=["clipped", "not clipped"],
)
def test_golden(limit, golden):
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = LAMB([w], lr=0.1, max_grad_norm=limit)
    for _ in range(3):
        optimizer.zero_grad()
        (w.square().sum() + 0.1 * w.pow(3).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor(golden, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": None},
        {"max_grad_norm": 1e6},
        {"trust_clip": True, "lr": 0.3},
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "always_adapt": True},
        {"grad_averaging": False},
        {"bias_correction": False},
        {"decoupled_decay": True, "weight_decay": 0.3},
        {"betas": (0.5, 0.9), "eps": 1e-3},
    ],
    ids=str,
)
def test_timm(options):
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.02, **options}
    train(LAMB(ours, **options), ours, 5)
    train(peer("timm.optim.lamb").Lamb(theirs, foreach=False, **options), theirs, 5)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_timm_with_groups():
    """A group of its own without decay, and one that starts two steps late: clipped together, counted apart."""
    results = []
    for kind in (LAMB, peer("timm.optim.lamb").Lamb):
        params = parameters()
        optimizer = kind([{"params": params[:2]}, {"params": params[2:4], "weight_decay": 0.0}], lr=0.02)
        train(optimizer, params, 2)
        optimizer.add_param_group({"params": params[4:], "lr": 0.1})
        train(optimizer, params, 2)
        assert [int(group["step"]) for group in optimizer.param_groups] == [4, 4, 2]
        results.append(params)
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_nothing_is_nan_at_zero():
    zero_gradient, zero_weight, zero_both = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    zero_gradient.grad, zero_weight.grad, zero_both.grad = torch.zeros(3), torch.ones(3), torch.zeros(3)
    LAMB([zero_gradient, zero_weight, zero_both], lr=0.1, weight_decay=0.01).step()
    # without a gradient the step is the weight's own direction, as long as the weight
    torch.testing.assert_close(zero_gradient.detach(), torch.full((3,), 0.9))
    torch.testing.assert_close(zero_weight.detach(), torch.full((3,), -0.1), rtol=1e-5, atol=0)
    assert zero_both.tolist() == [0.0] * 3


def test_half_precision_is_float32_rounded_once():
    half, full = parameters(torch.bfloat16), [p.detach().float().requires_grad_() for p in parameters(torch.bfloat16)]
    optimizer, expected = LAMB(half, lr=0.1), LAMB(full, lr=0.1)
    for p, q in zip(half, full, strict=True):
        p.grad = torch.ones_like(p) * 3e4
        q.grad = p.grad.float()
    optimizer.step()
    expected.step()
    for p, q in zip(half, full, strict=True):
        assert torch.equal(p, q.to(torch.bfloat16))
        assert torch.equal(optimizer.state[p]["exp_avg"], expected.state[q]["exp_avg"].to(torch.bfloat16))


def test_norm_of_float16_gradients_does_not_overflow():
    w = torch.ones(400, dtype=torch.float16, requires_grad=True)
    w.grad = torch.full_like(w, 6e4)
    optimizer = LAMB([w], lr=0.1)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[w]["exp_avg"], torch.full_like(w, 0.1 / 20))


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_and_layouts(mixed):
    """Gradients are only read; channels-last weights and gradients of another layout are as good as any; dtypes may differ."""
    reference = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    moved = reference.clone().to(memory_format=torch.channels_last).requires_grad_()
    plain = reference.clone().requires_grad_()
    others = [torch.randn(7, requires_grad=True)] if mixed else []
    twins = [p.detach().clone().requires_grad_() for p in others]
    grad = torch.randn_like(reference)
    moved.grad, plain.grad = grad.clone(), grad.clone()
    for p in (*others, *twins):
        p.grad = torch.ones_like(p)
    LAMB([moved, *others], lr=0.1).step()
    LAMB([*twins, plain], lr=0.1).step()
    torch.testing.assert_close(moved, plain, rtol=1e-12, atol=1e-13)
    assert torch.equal(moved.grad, grad)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    for p, q in zip(others, twins, strict=True):
        torch.testing.assert_close(p, q)


def test_state_continues_to_the_bit():
    whole, first = parameters(torch.float32), parameters(torch.float32)
    options = {"lr": 0.05, "weight_decay": 0.1, "max_grad_norm": 0.5, "betas": (0.8, 0.99)}
    train(LAMB(whole, **options), whole, 6)
    before = LAMB(first, **options)
    train(before, first, 3)
    second = [p.detach().clone().requires_grad_() for p in first]
    after = LAMB(second, lr=1.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, second, 3)
    for p, q in zip(whole, second, strict=True):
        assert torch.equal(p, q)


def test_a_checkpoint_of_timm_fits():
    ours, theirs = parameters(), parameters()
    their = peer("timm.optim.lamb").Lamb(theirs, lr=0.02, foreach=False)
    train(their, theirs, 2)
    our = LAMB(ours, lr=0.5)
    our.load_state_dict(copy.deepcopy(their.state_dict()))
    with torch.no_grad():
        torch._foreach_copy_(ours, theirs)
    train(our, ours, 2)
    train(their, theirs, 2)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_clipping_under_a_scaler_sees_unscaled_gradients():
    scaled, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, expected = LAMB(scaled, lr=0.05), LAMB(plain, lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for bad in (False, True, False):
        before = [p.detach().clone() for p in scaled]
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled)).backward()
        if bad:
            scaled[1].grad[7] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert all(torch.equal(p, q) for p, q in zip(scaled, before, strict=True))
        else:
            train(expected, plain, 1)
    # powers of two scale without rounding
    for p, q in zip(scaled, plain, strict=True):
        assert torch.equal(p, q)
    assert optimizer.param_groups[0]["step"] == 2


def test_parameters_without_a_gradient_stay():
    w, idle = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = LAMB([w, idle])
    optimizer.step()
    assert optimizer.step(lambda: 3.0) == 3.0
    w.sum().backward()
    optimizer.step()
    assert idle.tolist() == [1.0] * 3
    assert idle not in optimizer.state
    assert w.tolist() != [1.0] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "LAMB: lr must be at least 0 and finite, got -0.1"),
        ({"eps": float("inf")}, "LAMB: eps must be at least 0"),
        ({"weight_decay": -1.0}, "LAMB: weight_decay must be at least 0"),
        ({"betas": (0.9, 1.0)}, "LAMB: betas must be at least 0 and below 1"),
        ({"max_grad_norm": 0.0}, "LAMB: max_grad_norm must be positive or None"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LAMB([torch.ones(2, requires_grad=True)], **options)


def test_one_limit_for_all_groups():
    optimizer = LAMB([torch.ones(2, requires_grad=True)])
    with pytest.raises(ValueError, match="LAMB: max_grad_norm must be that of all groups .1.0., got 2.0"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "max_grad_norm": 2.0})
    assert len(optimizer.param_groups) == 1


def test_sparse_and_complex_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="LAMB: grads.0. must be dense"):
        LAMB(embedding.parameters()).step()
    number = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    number.grad = torch.ones_like(number)
    with pytest.raises(TypeError, match="must be real"):
        LAMB([number]).step()


def test_sharded_parameters_are_refused(monkeypatch):
    w = torch.ones(3, requires_grad=True)
    w.grad = torch.ones(3)
    monkeypatch.setattr("vtkernels.optim.shards.is_sharded", lambda tensor: True)
    with pytest.raises(TypeError, match="LAMB: params must be whole, got a DTensor; its trust ratio needs the whole tensor"):
        LAMB([w]).step()
