"""What holds for every list of tensors, on every backend: drawn at random, shrunk when it fails."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multi_tensor import DTYPES, assert_unchanged, bits, call, every_backend
from torch import Tensor

drawn = settings(max_examples=30, deadline=None, derandomize=True)
shapes = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6)
seeds = st.integers(0, 2**31 - 1)


def normal(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def perturbed(backend: str, params: list[Tensor], grads: list[Tensor], **options) -> tuple[list[Tensor], Tensor]:
    """Copies of the parameters after the step, and the norm."""
    params = [param.clone() for param in params]
    return params, call("sam_perturb_", backend, params, grads, [torch.empty_like(param) for param in params], **options)


@every_backend
@drawn
@given(data=st.data(), shapes=shapes, seed=seeds, adaptive=st.booleans(), rho=st.floats(0, 1e6), poison=st.sampled_from([None, math.inf, math.nan]))
def test_restore_undoes_perturb_to_the_bit(backend, data, shapes, seed, adaptive, rho, poison):
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES[:3]), min_size=len(shapes), max_size=len(shapes)))
    params = [param.to(dtype) for param, dtype in zip(normal(shapes, seed), dtypes, strict=True)]
    grads = [torch.randn_like(param) for param in params]
    if poison is not None and grads[-1].numel():
        grads[-1].view(-1)[-1] = poison
    before, backups = bits(params), [torch.empty_like(param) for param in params]
    call("sam_perturb_", backend, params, grads, backups, rho=rho, adaptive=adaptive, eta=0.01)
    assert_unchanged(backups, before)
    call("sam_restore_", backend, params, backups)
    assert_unchanged(params, before)


@every_backend
@drawn
@given(shapes=shapes, seed=seeds, exponent=st.integers(-30, 30), adaptive=st.booleans())
def test_the_step_does_not_depend_on_the_gradients_scale(backend, shapes, seed, exponent, adaptive):
    """To the bit, by a power of two: whether the loss was multiplied, or a GradScaler did it."""
    params, grads, factor = normal(shapes, seed), normal(shapes, seed + 1), 2.0**exponent
    scaled = [factor * grad for grad in grads]
    expected, norm = perturbed(backend, params, grads, rho=0.5, adaptive=adaptive, eps=0.0)
    found, larger_norm = perturbed(backend, params, scaled, rho=0.5, adaptive=adaptive, eps=0.0)
    assert_unchanged(found, bits(expected))
    assert float(larger_norm) == float(norm) * factor
    expected, _ = perturbed(backend, params, grads, rho=0.5, adaptive=adaptive, eps=0.25)
    found, same_norm = perturbed(backend, params, scaled, rho=0.5, adaptive=adaptive, eps=0.25, grad_scale=torch.tensor(factor))
    assert_unchanged(found, bits(expected))
    assert float(same_norm) == float(norm)


@every_backend
@drawn
@given(shapes=shapes, seed=seeds, exponent=st.integers(-5, 5))
def test_adaptive_steps_follow_the_weights_scale(backend, shapes, seed, exponent):
    """ASAM: weights times c have gradients divided by c, the same norm, and a step times c."""
    params, grads, factor = normal(shapes, seed), normal(shapes, seed + 1), 2.0**exponent
    options = {"rho": 0.5, "adaptive": True, "eps": 0.0}
    expected, norm = perturbed(backend, params, grads, **options)
    found, same_norm = perturbed(backend, [factor * param for param in params], [grad / factor for grad in grads], **options)
    assert_unchanged(found, bits([factor * param for param in expected]))
    assert float(same_norm) == float(norm)


@every_backend
@drawn
@given(shapes=shapes, seed=seeds, adaptive=st.booleans())
def test_the_square_sum_handed_in_is_the_one_it_computes(backend, shapes, seed, adaptive):
    params, grads = normal(shapes, seed), normal(shapes, seed + 1)
    total = call("sam_square_sum", backend, params, grads, adaptive=adaptive, eta=0.1)
    expected, norm = perturbed(backend, params, grads, rho=0.5, adaptive=adaptive, eta=0.1)
    found, same_norm = perturbed(backend, params, grads, rho=0.5, adaptive=adaptive, eta=0.1, square_sum=total)
    assert_unchanged(found, bits(expected))
    assert float(norm) == float(same_norm) == pytest.approx(math.sqrt(float(total)), rel=1e-6)


@every_backend
@drawn
@given(size=st.integers(1, 200), cuts=st.lists(st.integers(0, 200), max_size=4), seed=seeds, op=st.sampled_from(["sam_perturb_", "sgd_step_", "adamw_step_"]))
def test_where_tensors_are_cut_changes_nothing_but_rounding(backend, size, cuts, seed, op):
    """Views of one buffer, side by side, are stepped like the whole."""

    def stepped(bounds: list[int]) -> list[Tensor]:
        whole = [tensor.abs() for tensor in normal([(size,)] * 5, seed)]
        params, grads, backups, m, v = ([tensor[a:b] for a, b in zip(bounds, bounds[1:], strict=False)] for tensor in whole)
        if op == "sam_perturb_":
            call(op, backend, params, grads, backups, rho=2.0)
        elif op == "sgd_step_":
            call(op, backend, params, grads, m, lr=0.1, momentum=0.9, backups=backups)
        else:
            call(op, backend, params, grads, m, v, [torch.tensor(2.0) for _ in params], lr=0.1, backups=backups)
        return whole

    for found, expected in zip(stepped([0, *sorted(min(cut, size) for cut in cuts), size]), stepped([0, size]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
