"""The multi-tensor ops' own truths: golden steps, gradients no formula survives, bits that come back. The contract is in test_contract*.py."""

import math

import pytest
import torch
from multi_tensor import assert_unchanged, bits, call, every_backend, every_dtype
from torch import Tensor

# ---- the golden problem: y = w A + b, L = sum tanh(y)^2 + 0.1 sum w^4 ----------------------------------------------------


# per run: options of perturb, coupled weight decay, and per step: loss, norm, loss at the worst point, w row by row, b
GOLDEN = {
    "sam": (
        {"rho": 0.05},
        0.0,
        [
            (
                1.267449358209284,
                3.1510514470535935,
                1.4301193370235155,
                [0.20391104300017623, 0.05087093303121537, 0.19350123233826869, 0.22124021933086865],
                [0.07117868808116684, -0.161230894131186],
            ),
            (
                0.7333311175012613,
                3.3784627454429796,
                0.9030121750574651,
                [-0.03997113414950632, 0.09356090865990206, 0.21618654689111175, -0.12258315392529272],
                [-0.045308204741886834, -0.2126015075770205],
            ),
        ],
    ),
    "asam": (
        {"rho": 0.5, "adaptive": True},
        0.0,
        [
            (
                1.267449358209284,
                0.9234939418480673,
                1.6902614114545051,
                [0.20820668259916444, 0.04895851320248706, 0.22857806442437892, 0.2634761866450062],
                [0.08948348656570251, -0.1504513112214718],
            ),
            (
                0.8683587073081793,
                0.580452608046447,
                1.1359159380612176,
                [-0.06481729831490742, 0.1097897106089359, 0.2987201491053392, 0.03582560373573988],
                [0.015479261098687592, -0.21335117744097218],
            ),
        ],
    ),
    "sam with decay": (
        {"rho": 0.05},
        0.01,
        [
            None,
            (
                0.7323373919410449,
                3.3801899575759666,
                0.9020990980372551,
                [-0.040505232083463, 0.09373537728086605, 0.21556479315674532, -0.12373584826322924],
                [-0.045568556248541225, -0.212108951413626],
            ),
        ],
    ),
}


def golden_loss(params: list[Tensor]) -> Tensor:
    w, b = params
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=w.dtype)
    return (w @ x + b).tanh().square().sum() + 0.1 * w.pow(4).sum()


def gradients(params: list[Tensor]) -> tuple[float, list[Tensor]]:
    leaves = [param.detach().requires_grad_() for param in params]
    loss = golden_loss(leaves)
    return loss.item(), list(torch.autograd.grad(loss, leaves))


@every_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["float64", "float32"])
@pytest.mark.parametrize("run", GOLDEN)
def test_golden_steps(run, dtype, tolerance, backend):
    options, weight_decay, steps = GOLDEN[run]
    params = [torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=dtype), torch.tensor([0.05, -0.15], dtype=dtype)]
    buffers, backups = [torch.zeros_like(p) for p in params], [torch.empty_like(p) for p in params]
    for golden in steps:
        loss, grads = gradients(params)
        norm = call("sam_perturb_", backend, params, grads, backups, **options)
        worst, grads = gradients(params)
        call("sgd_step_", backend, params, grads, buffers, lr=0.1, momentum=0.9, weight_decay=weight_decay, backups=backups)
        if golden is not None:
            found = [loss, float(norm), worst, *params[0].flatten().tolist(), *params[1].tolist()]
            expected = [*golden[:3], *golden[3], *golden[4]]
            assert found == pytest.approx(expected, rel=0, abs=tolerance)


@every_backend
@every_dtype
def test_the_step_has_length_rho(backend, dtype):
    params, grads = [torch.zeros(70, 30, dtype=dtype), torch.zeros((), dtype=dtype)], [torch.randn(70, 30).to(dtype), torch.randn(()).to(dtype)]
    norm = call("sam_perturb_", backend, params, grads, [torch.empty_like(p) for p in params], rho=2.0)
    assert math.hypot(*(float(p.double().norm()) for p in params)) == pytest.approx(2.0, rel=4 * torch.finfo(dtype).eps)
    assert float(norm) == pytest.approx(math.hypot(*(float(g.double().norm()) for g in grads)), rel=1e-6)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# ---- gradients at the edge of their dtype --------------------------------------------------------------------------------


@every_backend
@every_dtype
@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [(0, 0), (1, 0), (2, 0), (2, -1)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_nothing_moves_if_a_gradient_is_not_finite(backend, dtype, poison, where, adaptive):
    params = [torch.randn(size).to(dtype) for size in (5, 1, 70)]
    grads = [torch.randn_like(param) for param in params]
    grads[where[0]][where[1]] = poison
    before, grads_before = bits(params), bits(grads)
    backups, found_inf = [torch.empty_like(param) for param in params], torch.zeros(1)
    norm = call("sam_perturb_", backend, params, grads, backups, rho=0.5, adaptive=adaptive, found_inf=found_inf)
    assert_unchanged(params, before)
    assert_unchanged(backups, before)
    assert_unchanged(grads, grads_before)
    assert found_inf.item() == 1
    assert not norm.isfinite()
    # nor without a flag to tell of it
    backups = [torch.empty_like(param) for param in params]
    call("sam_perturb_", backend, params, grads, backups, rho=0.5, adaptive=adaptive)
    assert_unchanged(params, before)
    assert_unchanged(backups, before)


@every_backend
@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_sum_of_squares_that_is_not_finite_is_handed_on(backend, poison):
    """The shards of other devices: an inf there keeps the parameters here in place."""
    params = [torch.randn(9)]
    before, backups, found_inf = bits(params), [torch.empty(9)], torch.zeros(())
    call("sam_perturb_", backend, params, [torch.randn(9)], backups, rho=0.5, found_inf=found_inf, square_sum=torch.tensor(poison, dtype=torch.float64))
    assert_unchanged(params, before)
    assert_unchanged(backups, before)
    assert found_inf.item() == 1
    assert not call("sam_square_sum", backend, params, [torch.full((9,), poison)]).isfinite()


@every_backend
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e30), (torch.float32, 1e-30), (torch.bfloat16, 1e30), (torch.bfloat16, 1e-30), (torch.float16, 60000.0)]
)
def test_squares_neither_overflow_nor_vanish(backend, dtype, size):
    """float32 holds the norm, but not its square; float16 not even the sum of two such gradients."""
    directions = [torch.randn(40), torch.randn(3, 5)]
    directions = [direction.sign() * direction.abs().clamp(0.1, 1.0) for direction in directions]
    grads = [(direction.double() * size).to(dtype) for direction in directions]
    params, backups = [torch.zeros_like(grad) for grad in grads], [torch.empty_like(grad) for grad in grads]
    found_inf = torch.zeros(())
    norm = call("sam_perturb_", backend, params, grads, backups, rho=2.0, eps=0.0, found_inf=found_inf)
    exact = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))
    assert found_inf.item() == 0
    assert float(norm) == pytest.approx(exact, rel=1e-6)
    assert float(call("sam_square_sum", backend, params, grads)) == pytest.approx(exact**2, rel=1e-6)
    for param, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(param.double(), 2.0 * grad.double() / exact, rtol=2 * torch.finfo(dtype).eps, atol=0)


@every_backend
@every_dtype
@pytest.mark.parametrize("op", ["sgd_step_", "adamw_step_"])
@pytest.mark.parametrize("with_backups", [False, True])
def test_a_step_is_left_out_whatever_the_gradients_hold(backend, dtype, op, with_backups):
    """GradScaler skipped: the weights come back from the worst point, and nothing else moves."""
    tensors = {name: [torch.randn(size).to(dtype) for size in (5, 0, 70)] for name in ("params", "grads", "backups", "m", "v")}
    tensors["grads"][0][0], tensors["grads"][2][-1] = math.nan, math.inf
    tensors["steps"] = [torch.tensor(3.0) for _ in range(3)]
    before = {name: bits(values) for name, values in tensors.items()}
    params, grads, backups, m, v, steps = (tensors[name] for name in ("params", "grads", "backups", "m", "v", "steps"))
    options = {"lr": 0.5, "weight_decay": 0.1, "found_inf": torch.ones(()), "backups": backups if with_backups else ()}
    if op == "sgd_step_":
        call(op, backend, params, grads, m, momentum=0.9, **options)
    else:
        call(op, backend, params, grads, m, v, steps, **options)
    expected = before | {"params": before["backups" if with_backups else "params"]}
    for name, values in tensors.items():
        assert_unchanged(values, expected[name])


# ---- bits that come back -------------------------------------------------------------------------------------------------


def every_kind_of_number(dtype: torch.dtype) -> Tensor:
    """Infinities, zeros of both signs, denormals, the largest; NaN as arithmetic makes it, and three NaNs with a message."""
    integers, sign, exponent, quiet = {
        torch.float64: (torch.int64, -(2**63), 0x7FF << 52, 1 << 51),
        torch.float32: (torch.int32, -(2**31), 0xFF << 23, 1 << 22),
        torch.bfloat16: (torch.int16, -(2**15), 0xFF << 7, 1 << 6),
        torch.float16: (torch.int16, -(2**15), 0x1F << 10, 1 << 9),
    }[dtype]
    numbers = [exponent, exponent + sign, 0, sign, 1, 2 * quiet - 1, exponent - 1]
    nans = [exponent + quiet, exponent + quiet + sign + 3, exponent + 1, exponent + quiet - 1]
    return torch.tensor(numbers + nans, dtype=integers).view(dtype)


@every_backend
@every_dtype
def test_restore_gives_back_every_bit(backend, dtype):
    odd = every_kind_of_number(dtype)
    saved = [odd, odd.repeat(9)[:-1], odd[:0], odd[0], odd.repeat(400)]
    expected = bits(saved)
    params = [torch.randn(tensor.shape).to(dtype) for tensor in saved]
    places = [param.data_ptr() for param in params]
    call("sam_restore_", backend, params, saved)
    assert_unchanged(params, expected)
    assert_unchanged(saved, expected)
    assert [param.data_ptr() for param in params] == places


@every_backend
@every_dtype
@pytest.mark.parametrize("gradient", [1.0, math.inf])
def test_perturb_saves_every_bit(backend, dtype, gradient):
    """Also of weights that are lost already; and if the step is refused, they keep their bits too."""
    odd = every_kind_of_number(dtype)
    params = [odd, torch.randn(100).to(dtype)]
    before, backups = bits(params), [torch.empty_like(param) for param in params]
    grads = [torch.full_like(param, gradient) for param in params]
    call("sam_perturb_", backend, params, grads, backups, rho=0.5)
    assert_unchanged(backups, before)
    if gradient == math.inf:
        assert_unchanged(params, before)
    else:
        assert not torch.equal(params[1], backups[1])


@every_backend
@every_dtype
@pytest.mark.parametrize("op", ["sgd_step_", "adamw_step_"])
def test_a_step_from_backups_is_restore_and_step(backend, dtype, op):
    def tensors():
        generator = torch.Generator().manual_seed(1)
        return [[torch.randn(size, generator=generator).abs().to(dtype) for size in (5, 0, 70, 4099)] for _ in range(5)]

    def step(params, grads, backups, m, v, given):
        if op == "sgd_step_":
            call(op, backend, params, grads, m, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, backups=given)
        else:
            call(op, backend, params, grads, m, v, [torch.tensor(3.0) for _ in params], lr=0.1, backups=given)

    fused, split = tensors(), tensors()
    step(*fused, given=fused[2])
    call("sam_restore_", backend, split[0], split[2])
    step(*split, given=())
    for found, expected in zip(fused, split, strict=True):
        assert_unchanged(found, bits(expected))


@every_backend
def test_more_tensors_than_any_table_of_pointers_holds(backend):
    params = [torch.full((1 + i % 2,), float(i)) for i in range(3000)]
    before, backups = bits(params), [torch.empty_like(param) for param in params]
    grads = [torch.ones_like(param) for param in params]
    norm = call("sam_perturb_", backend, params, grads, backups, rho=math.sqrt(4500))
    assert float(norm) == pytest.approx(math.sqrt(4500), rel=1e-6)
    assert all(torch.allclose(param, backup + 1) for param, backup in zip(params, backups, strict=True))
    assert_unchanged(backups, before)
    call("sgd_step_", backend, params, grads, lr=[float(i) for i in range(3000)], backups=backups)
    assert not torch.cat(params).any(), "i - i * 1"


@every_backend
def test_the_norm_does_not_depend_on_the_number_of_threads(backend):
    grads = [torch.randn(200_003), torch.randn(7), torch.randn(300, 41)]
    params = [torch.zeros_like(grad) for grad in grads]
    threads, found = torch.get_num_threads(), set()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.add(float(call("sam_square_sum", backend, params, grads)))
    finally:
        torch.set_num_threads(threads)
    if backend != "reference":
        assert len(found) == 1
    assert max(found) == pytest.approx(min(found), rel=1e-12)


@every_backend
def test_a_finite_step_is_made_through_extreme_factors(backend):
    """T^2 g overflows where T g and the step do not; without eps a tiny norm has an inverse above float32's range."""
    weights = torch.full((70,), 1e5)
    params, backups = [weights.clone()], [torch.empty(70)]
    call("sam_perturb_", backend, params, [torch.full((70,), 1e30)], backups, rho=0.5, adaptive=True)
    step = 0.5 * 1e5 / math.sqrt(70)
    torch.testing.assert_close(params[0], weights + step, rtol=1e-6, atol=0)
    params = [weights.clone()]
    call("sam_perturb_", backend, params, [torch.full((70,), 1e-44)], backups, rho=0.5, eps=0.0)
    assert params[0].isfinite().all()
