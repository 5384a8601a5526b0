"""The optimizer steps beside torch's and timm's optimizers, and beside golden numbers."""

import pytest
import torch
from multi_tensor import call, every_backend
from optional import peer
from torch import Tensor

SHAPES = [(13, 5), (7,), (), (2, 3, 4), (1, 70)]
# float64 as exactly as sums go; float32 within a few roundings of the largest weight in each of the steps
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)], ids=["float64", "float32"])

SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "decay": {"momentum": 0.9, "weight_decay": 0.05},
    "nesterov and decay": {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
    "maximize": {"momentum": 0.9, "weight_decay": 0.05, "maximize": True},
}
ADAM = {
    "default": {},
    "decay": {"weight_decay": 0.1},
    "betas and eps": {"betas": (0.8, 0.95), "eps": 1e-3},
    "maximize": {"weight_decay": 0.1, "maximize": True},
}


class Run:
    """Parameters, and twenty rounds of gradients, the same for both sides."""

    def __init__(self, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(3)
        self.params = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
        self.rounds = [[torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES] for _ in range(20)]

    def zeros(self) -> list[Tensor]:
        return [torch.zeros_like(param) for param in self.params]

    def of(self, optimizer_class, **options) -> tuple[list[Tensor], torch.optim.Optimizer]:
        """The parameters after all rounds of an optimizer, and the optimizer."""
        params = [torch.nn.Parameter(param.clone()) for param in self.params]
        optimizer = optimizer_class(params, **options)
        for grads in self.rounds:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        return [param.detach() for param in params], optimizer


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())), msg=lambda text, i=i: f"tensor {i}: {text}")


@every_backend
@PRECISIONS
@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_sgd_is_torchs(backend, dtype, tolerance, options):
    run = Run(dtype)
    params, buffers = [param.clone() for param in run.params], run.zeros() if options.get("momentum") else ()
    for grads in run.rounds:
        call("sgd_step_", backend, params, grads, buffers, lr=0.1, **options)
    expected, optimizer = run.of(torch.optim.SGD, lr=0.1, **options)
    assert_all_close(params, expected, tolerance)
    if buffers:
        assert_all_close(buffers, [optimizer.state[param]["momentum_buffer"] for param in optimizer.param_groups[0]["params"]], tolerance)


@every_backend
@PRECISIONS
@pytest.mark.parametrize("decoupled", [True, False], ids=["AdamW", "Adam"])
@pytest.mark.parametrize("options", ADAM.values(), ids=ADAM)
def test_adam_is_torchs(backend, dtype, tolerance, decoupled, options):
    run = Run(dtype)
    options = {"weight_decay": 0.0} | options
    params, m, v, steps = [param.clone() for param in run.params], run.zeros(), run.zeros(), [torch.zeros(()) for _ in SHAPES]
    for grads in run.rounds:
        call("adamw_step_", backend, params, grads, m, v, steps, lr=0.01, decoupled=decoupled, **options)
    expected, optimizer = run.of(torch.optim.AdamW if decoupled else torch.optim.Adam, lr=0.01, **options)
    assert_all_close(params, expected, tolerance)
    states = [optimizer.state[param] for param in optimizer.param_groups[0]["params"]]
    assert_all_close(m, [state["exp_avg"] for state in states], tolerance)
    assert_all_close(v, [state["exp_avg_sq"] for state in states], tolerance)
    assert [float(step) for step in steps] == [20.0] * len(SHAPES)


@every_backend
@PRECISIONS
@pytest.mark.parametrize("options", [SGD["momentum"], SGD["nesterov"], SGD["maximize"]], ids=["momentum", "nesterov", "maximize"])
def test_decoupled_sgd_is_timms(backend, dtype, tolerance, options):
    options = options | {"weight_decay": 0.05}
    run = Run(dtype)
    params, buffers = [param.clone() for param in run.params], run.zeros()
    for grads in run.rounds:
        call("sgd_step_", backend, params, grads, buffers, lr=0.1, decoupled=True, **options)
    # one tensor at a time: timm's multi-tensor path decays lists of mixed kinds more than once
    expected, _ = run.of(peer("timm.optim").SGDW, lr=0.1, foreach=False, **options)
    assert_all_close(params, expected, tolerance)


@every_backend
@PRECISIONS
@pytest.mark.parametrize(
    ("op", "options", "expected"),
    [
        ("sgd_step_", {"momentum": 0.9, "nesterov": True}, [-0.0738053322632635, 0.029838898556415357, -0.4825156975984063]),
        ("sgd_step_", {"momentum": 0.9, "decoupled": True}, [0.006136299650009397, -0.16352272848815583, -0.2415317879578228]),
        ("adamw_step_", {"decoupled": False}, [0.2052813351965997, -0.7012674830586428, 1.7007948813835023]),
        ("adamw_step_", {"decoupled": True}, [0.20412747477792026, -0.6985860696266022, 1.6951213099843943]),
    ],
    ids=["SGD", "SGDW", "Adam", "AdamW"],
)
def test_golden_steps(backend, dtype, tolerance, op, options, expected):
    """Three steps down sum w^2 + 0.1 w^3."""
    w = torch.tensor([0.5, -1.0, 2.0], dtype=dtype)
    m, v, step = torch.zeros_like(w), torch.zeros_like(w), torch.zeros(())
    for _ in range(3):
        grad = 2 * w + 0.3 * w.square()
        state = ([m],) if op == "sgd_step_" else ([m], [v], [step])
        call(op, backend, [w], [grad], *state, lr=0.1, weight_decay=0.01, **options)
    assert w.tolist() == pytest.approx(expected, rel=0, abs=tolerance)


@every_backend
@pytest.mark.parametrize("op", ["sgd_step_", "adamw_step_"])
def test_rates_per_tensor_are_parameter_groups(backend, op):
    rates, decays = [0.0, 0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.1, 0.2, 0.0]

    def stepped(indices: list[int], lr, weight_decay) -> list[Tensor]:
        run = Run(torch.float32)
        params, grads, m, v = ([tensors[i].clone() for i in indices] for tensors in (run.params, run.rounds[0], run.zeros(), run.zeros()))
        if op == "sgd_step_":
            call(op, backend, params, grads, m, lr=lr, weight_decay=weight_decay, momentum=0.9)
        else:
            call(op, backend, params, grads, m, v, [torch.zeros(()) for _ in indices], lr=lr, weight_decay=weight_decay)
        return params

    together = stepped([0, 1, 2, 3, 4], rates, decays)
    for i, param in enumerate(together):
        assert torch.equal(param, stepped([i], rates[i], decays[i])[0])


@every_backend
def test_without_a_gradient_adamw_shrinks_by_exactly_the_decay(backend):
    w = torch.randn(100)
    expected = w * (1 - 0.1 * 0.25)
    call("adamw_step_", backend, [w], [torch.zeros(100)], [torch.zeros(100)], [torch.zeros(100)], [torch.zeros(())], lr=0.1, weight_decay=0.25)
    torch.testing.assert_close(w, expected, rtol=2 * torch.finfo(torch.float32).eps, atol=0)


@every_backend
@pytest.mark.parametrize("op", ["sgd_step_", "adamw_step_"])
def test_a_scale_is_taken_off_exactly(backend, op):
    """By a power of two: the same bits as from gradients that never were scaled."""

    def stepped(factor: float, scale: Tensor | None) -> list[Tensor]:
        run = Run(torch.float32)
        params, grads, m, v = [p.clone() for p in run.params], [factor * g for g in run.rounds[0]], run.zeros(), run.zeros()
        state = (m,) if op == "sgd_step_" else (m, v, [torch.zeros(()) for _ in SHAPES])
        options = {"momentum": 0.9} if op == "sgd_step_" else {}
        call(op, backend, params, grads, *state, lr=0.1, weight_decay=0.1, grad_scale=scale, **options)
        return params + m + v

    for found, expected in zip(stepped(1024.0, torch.tensor(1024.0)), stepped(1.0, None), strict=True):
        assert torch.equal(found, expected)
