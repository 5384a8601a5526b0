"""Clipping against torch, timm and the formulas, and early stopping's sequences."""

import math

import pytest
import torch
from optional import peer

from vtkernels.optim import EarlyStopping, clip_grad_adaptive_, clip_grad_norm_, clip_grad_value_

SHAPES = [(4, 3), (5,), (6, 2, 3, 3), (), (0, 2)]


def parameters(scale: float = 1.0, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]
    for param in params:
        param.grad = (scale * torch.randn(param.shape, generator=generator)).to(dtype)
    return [*params, torch.ones(3, requires_grad=True)]


def grads(params) -> list[torch.Tensor]:
    return [param.grad.clone() for param in params if param.grad is not None]


def test_norm_is_torchs():
    ours, theirs = parameters(), parameters()
    found, expected = clip_grad_norm_(iter(ours), 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, grads(ours), grads(theirs)))


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_norm_as_in_jax(share):
    params = parameters()
    before = grads(params)
    norm = torch.cat([grad.flatten() for grad in before]).norm()
    limit = share * norm.item()
    torch.testing.assert_close(clip_grad_norm_(params, limit, only_above=True), norm)
    for grad, was in zip(grads(params), before, strict=True):
        if share > 1:
            assert torch.equal(grad, was)
        else:
            torch.testing.assert_close(grad, was * limit / norm)
    zero = torch.ones(2, requires_grad=True)
    zero.grad = torch.zeros(2)
    clip_grad_norm_([zero], 1.0, only_above=True)
    assert zero.grad.tolist() == [0.0, 0.0]


def test_nothing_to_clip():
    assert clip_grad_norm_([], 1.0).item() == 0.0
    assert clip_grad_norm_([torch.ones(2, requires_grad=True)], 1.0, only_above=True).item() == 0.0
    clip_grad_value_([], 1.0)
    clip_grad_adaptive_([])


def test_values():
    params = parameters(10.0)
    expected = [grad.clamp(-0.5, 0.5) for grad in grads(params)]
    clip_grad_value_(params, 0.5)
    assert all(map(torch.equal, grads(params), expected))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_adaptive_is_timms(scale):
    ours, theirs = (parameters(scale)[:4] for _ in range(2))
    clip_grad_adaptive_(ours, 0.05)
    peer("timm.utils.agc").adaptive_clip_grad(theirs, clip_factor=0.05)
    for mine, other in zip(grads(ours), grads(theirs), strict=True):
        torch.testing.assert_close(mine, other)


def test_adaptive_limits_each_unit_and_spares_the_head():
    params = parameters(30.0)
    before = grads(params)
    clip_grad_adaptive_(params, 0.01, exclude={id(params[0])})
    assert torch.equal(params[0].grad, before[0])
    for unit, weight in zip(params[2].grad, params[2], strict=True):
        assert unit.norm().item() == pytest.approx(0.01 * weight.norm().item(), rel=1e-5)
    again = parameters(30.0)
    clip_grad_adaptive_(again, 0.01, exclude=again[:1])
    assert all(map(torch.equal, grads(again), grads(params)))


def test_adaptive_in_half_precision_does_not_overflow():
    weight = torch.ones(2, 400, dtype=torch.float16, requires_grad=True)
    weight.grad = torch.full_like(weight, 6e4)
    clip_grad_adaptive_([weight], 0.01)
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 0.01), rtol=2e-3, atol=0)


@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_, clip_grad_adaptive_])
def test_limits_are_positive(clip):
    with pytest.raises(ValueError, match="must be positive, got 0"):
        clip(parameters(), 0)


def run(metrics, **options) -> EarlyStopping:
    stopping = EarlyStopping(**options)
    for metric in metrics:
        stopping.update(metric)
        if stopping.should_stop:
            break
    return stopping


@pytest.mark.parametrize(
    ("metrics", "options", "stopped", "best"),
    [
        ([1, 2, 2, 2, 9], {"patience": 2}, 3, 1),
        ([3, 2, 2, 2], {"patience": 2, "mode": "min"}, 3, 1),
        ([1, math.nan, math.nan], {"patience": 2}, 2, 0),
        ([math.nan, 1, 2], {"patience": 2}, None, 2),
        ([1, 1.05, 1.09, 1.2], {"patience": 3, "min_delta": 0.1}, None, 3),
        ([1, 1.05, 1.09], {"patience": 2, "min_delta": 0.1}, 2, 0),
        ([1, math.inf, 2], {"patience": 2}, None, 2),
        ([2, 1, 1, 1, 1], {"patience": None}, None, 0),
    ],
)
def test_early_stopping(metrics, options, stopped, best):
    stopping = run(metrics, **options)
    assert (stopping.stopped_index, stopping.best_index, stopping.should_stop) == (stopped, best, stopped is not None)


def test_early_stopping_resumes():
    first, second = EarlyStopping(patience=2), EarlyStopping(patience=2)
    assert [first.update(metric) for metric in (1.0, 2.0, 2.0)] == [True, True, False]
    second.load_state_dict(first.state_dict())
    assert not second.update(2.0)
    assert (second.should_stop, second.best, second.best_index, second.stopped_index) == (True, 2.0, 1, 3)


@pytest.mark.parametrize(("options", "message"), [({"patience": 0}, "patience"), ({"mode": "up"}, "mode"), ({"min_delta": -1}, "min_delta")])
def test_early_stopping_bad_values(options, message):
    with pytest.raises(ValueError, match=f"EarlyStopping: {message} must"):
        EarlyStopping(**options)
