"""Linear's and mlp's own truths: peers, precision, choices, refusals. The contract is in test_contract*.py."""

import json

import pytest
import torch
from torch.nn import functional as F

import vtkernels as vt
from vtkernels._core import native, preference, testing
from vtkernels._core.op import OPS
from vtkernels.ops.linear import reference
from vtkernels.ops.linear.cases import cases
from vtkernels.ops.linear.common import ACTIVATIONS, QUICK_GELU_SLOPE
from vtkernels.ops.linear.op import TUNER

TORCH = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(QUICK_GELU_SLOPE * x),
    "silu": F.silu,
}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_backend = pytest.mark.parametrize("backend", OPS["linear"].backend_names)
needs_native = pytest.mark.skipif(native.why_missing() is not None, reason=f"{native.why_missing()}")


def layer(rows=60, channels=32, outputs=48, dtype=torch.float32):
    return torch.randn(rows, channels, dtype=dtype), torch.randn(outputs, channels, dtype=dtype) * channels**-0.5, torch.randn(outputs, dtype=dtype)


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


# the formula


@every_activation
def test_the_formulas_are_torchs(activation):
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64, requires_grad=True)
    y = TORCH[activation](x)
    torch.testing.assert_close(reference.activate(activation, x.detach()), y.detach(), rtol=1e-12, atol=1e-15)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(reference.slope(activation, x.detach()), slope, rtol=1e-12, atol=1e-14)


@every_backend
@every_activation
def test_activations_at_the_ends_of_the_number_line(activation, backend):
    if testing.why_not("linear", {"x": torch.ones(1, 1), "weight": torch.ones(1, 1)}, backend):
        pytest.skip("it does not run here")
    x = torch.tensor([-200.0, -88.0, -20.0, -0.0, 0.0, 1e-30, 20.0, 88.0, 200.0, float("nan")])[:, None].requires_grad_()
    y = vt.linear(x, torch.ones(1, 1), None, activation, backend=backend)
    expected = TORCH[activation](x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    (grad,) = torch.autograd.grad(y[:-1].sum(), x)
    (slope,) = torch.autograd.grad(expected[:-1].sum(), x)
    torch.testing.assert_close(grad[:-1], slope[:-1], rtol=1e-5, atol=1e-6)


@every_backend
def test_nan_goes_where_it_belongs(backend):
    x, weight, bias = layer()
    if testing.why_not("linear", {"x": x, "weight": weight}, backend):
        pytest.skip("it does not run here")
    x[17, 3] = torch.nan
    for out in (vt.linear(x, weight, bias, "gelu", backend=backend), vt.mlp(x, weight, bias, weight.T, None, backend=backend)):
        assert out.isnan().all(-1).nonzero().flatten().tolist() == [17] and out.isnan().any(-1).sum() == 1


# precision


@needs_native
def test_gelus_tail_keeps_its_digits():
    x = torch.linspace(-5, -1, 401)[:, None]
    y = vt.linear(x, torch.ones(1, 1), None, "gelu", backend="cpu").double()
    exact = F.gelu(x.double())
    assert ((y - exact) / exact).abs().max() < 2e-6


@needs_native
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_float32_is_float32_inside(precision):
    """Numbers that bfloat16, and TF32, would round: one part in 2^-12 apart."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        x, weight, bias = layer(300, 400, 96)
        x, weight = 1 + x * 2**-12, 1 + weight * 2**-12
        leaves = [value.requires_grad_() for value in (x, weight, bias)]
        grad = torch.randn(300, 96)
        out = vt.linear(*leaves, backend="cpu")
        exact = F.linear(x.double(), weight.double(), bias.double()).detach()
        rounded = F.linear(x.bfloat16().double(), weight.bfloat16().double(), bias.double()).detach()
        assert error(out.detach(), exact) < 1e-6 < 5e-6 < error(rounded, exact)
        d_x, d_weight, d_bias = torch.autograd.grad(out, leaves, grad)
        for found, exact in (
            (d_x, grad.double() @ weight.detach().double()),
            (d_weight, grad.double().T @ x.detach().double()),
            (d_bias, grad.double().sum(0)),
        ):
            assert error(found, exact) < 2e-6
    finally:
        torch.set_float32_matmul_precision(before)


@needs_native
@pytest.mark.parametrize(("rows", "channels", "outputs"), [(6272, 192, 576), (392, 3072, 768), (1500, 100, 77)])
def test_no_less_accurate_than_torch(rows, channels, outputs):
    x, weight, bias = layer(rows, channels, outputs)
    grad = torch.randn(rows, outputs)
    x64, weight64, grad64 = x.double(), weight.double(), grad.double()
    exact = {"output": F.linear(x64, weight64, bias.double()), "x": grad64 @ weight64, "weight": grad64.T @ x64, "bias": grad64.sum(0)}
    found = testing.run_case("linear", {"x": x, "weight": weight, "bias": bias}, "cpu", (grad,))
    torchs = testing.run_case("linear", {"x": x, "weight": weight, "bias": bias}, "torch", (grad,))
    for name, truth in exact.items():
        key = name if name == "output" else f"gradient of {name}"
        factor = testing.FORWARD_FACTOR if name == "output" else testing.GRADIENT_FACTOR
        largest = float(truth.abs().max())
        mine, yours = (float((outcome[key].double() - truth).abs().max()) for outcome in (found, torchs))
        assert mine <= factor * (yours + torch.finfo(torch.float32).eps * largest), name


@needs_native
@pytest.mark.parametrize("op", ["linear", "mlp"])
def test_threads_change_no_bit(op):
    inputs = next(case for case in cases(op) if case.name == "many_rows").inputs(torch.float32)
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outcomes.append(testing.run_case(op, inputs, "cpu"))
    finally:
        torch.set_num_threads(before)
    for outcome in outcomes[1:]:
        assert all(torch.equal(outcome[name], value) for name, value in outcomes[0].items())


# what is saved and what is computed


@every_backend
def test_only_what_a_backward_needs_is_saved(backend):
    x, weight, bias = layer()
    if testing.why_not("linear", {"x": x, "weight": weight}, backend):
        pytest.skip("it does not run here")
    op = torch.ops.vtkernels.linear.default
    assert op(x, weight, bias, "gelu", True, backend)[1].shape == (60, 48)
    assert op(x, weight, bias, "gelu", False, backend)[1].shape == op(x, weight, bias, "none", True, backend)[1].shape == (0,)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        vt.mlp(x, weight.requires_grad_(), bias, torch.randn(32, 48), None, backend=backend)
    # the hidden rows once, and nothing of their size beside them
    assert sorted(value.shape for value in saved if value.dim() == 2 and value.shape[0] == 60) == [(60, 32), (60, 48)]


@every_backend
@pytest.mark.parametrize("frozen", ["x", "w1", "b1", "w2", "b2"])
def test_a_frozen_parameter_has_no_gradient_and_the_others_keep_theirs(frozen, backend):
    inputs = next(case for case in cases("mlp") if case.name == "block").inputs(torch.float32)
    if testing.why_not("mlp", inputs, backend):
        pytest.skip("it does not run here")
    expected = testing.run_case("mlp", inputs, backend)
    leaves = {name: value.clone().requires_grad_(name != frozen) for name, value in testing.differentiable(inputs).items()}
    out = vt.mlp(**leaves, backend=backend)
    out.backward(testing.upstream_for((out,))[0])
    assert leaves[frozen].grad is None
    for name, leaf in leaves.items():
        if name != frozen:
            torch.testing.assert_close(leaf.grad, expected[f"gradient of {name}"])


# which backend runs


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    monkeypatch.setenv("VTKERNELS_MEASURE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    preference.forget()
    yield tmp_path
    preference.forget()


def big_layer():
    return layer(512, 160, 160)


def test_without_measuring_the_rule_decides():
    x, weight, bias = big_layer()
    fast = native.isa() in preference.FAST_ISAS
    assert vt.explain("linear", x, weight, bias).chosen() == ("cpu" if fast else "torch")
    assert vt.explain("linear", x[:8], weight, bias).chosen() == "torch"
    for dtype in (torch.float64, torch.bfloat16):
        assert vt.explain("linear", x.to(dtype), weight.to(dtype)).chosen() == "torch"


@needs_native
def test_the_faster_one_is_measured_once_and_remembered(tuning, monkeypatch):
    x, weight, bias = big_layer()
    runs = []
    for name in ("cpu", "torch"):
        backend = OPS["linear"].backend(name)
        phases = {phase: lambda *args, name=name, run=run: runs.append(name) or run(*args) for phase, run in backend.phases.items()}
        monkeypatch.setitem(OPS["linear"]._loaded, name, type(backend)(name, backend.why_not, phases))
    vt.linear(x, weight, bias)
    assert sorted(set(runs)) == ["cpu", "torch"] and len(runs) == 2 * (preference.ROUNDS + 1) + 1
    (file,) = tuning.rglob("*.json")
    ((kind, winner),) = json.loads(file.read_text()).items()
    assert kind.startswith("linear forward float32 512 rows, 160x160 160, none") and winner == runs[-1]
    # another process would read the disk: whatever it says is believed
    loser = "torch" if winner == "cpu" else "cpu"
    file.write_text(json.dumps({kind: loser}))
    preference.forget()
    runs.clear()
    vt.linear(x[:400], weight, bias)
    assert runs == [loser] and vt.explain("linear", x, weight, bias).chosen() == loser


@needs_native
def test_nothing_is_measured_where_it_must_not_be(tuning, monkeypatch):
    monkeypatch.setattr(TUNER, "_measure", lambda *_: pytest.fail("it was measured"))
    x, weight, bias = big_layer()
    vt.linear(x[:4], weight, bias)
    vt.linear(x, weight, bias, backend="cpu")
    vt.linear(x.bfloat16(), weight.bfloat16())
    vt.explain("linear", x, weight, bias)
    torch.export.export(Linear(), (x, weight))
    with testing.poisoned_memory():
        vt.linear(x, weight, bias)
    monkeypatch.setenv("VTKERNELS_BACKEND", "torch")
    vt.linear(x, weight, bias)
    monkeypatch.delenv("VTKERNELS_BACKEND")
    monkeypatch.setenv("VTKERNELS_MEASURE", "0")
    vt.linear(x, weight, bias)


class Linear(torch.nn.Module):
    def forward(self, x, weight):
        return vt.linear(x, weight)


@needs_native
@pytest.mark.parametrize("content", ["", "[]", '{"linear forward": 3}', "{"])
def test_a_broken_memory_is_no_memory(tuning, content):
    vt.linear(*big_layer())
    (file,) = tuning.rglob("*.json")
    file.write_text(content)
    preference.forget()
    vt.linear(*big_layer())
    preference.forget()
    assert any(kind.startswith("linear forward float32 512") for kind in preference._known())


# bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x, w.T, b), r"weight must have shape \[D, 32\], got \[32, 48\]; .*transpose"),
        (lambda x, w, b: (x, w, b[:-1]), r"bias must have shape \[48\], got \[47\]"),
        (lambda x, w, b: (x, w.double(), b), r"weight must have x's dtype torch.float32, got torch.float64; try weight.to\(x.dtype\)"),
        (lambda x, w, b: (x, w, b.half()), "bias must have x's dtype"),
        (lambda x, w, b: (x.long(), w, b), "x must have dtype float16"),
        (lambda x, w, b: ([1.0], w, b), "x must be a tensor"),
        (lambda x, w, b: (x[0, 0], w, b), "x must have at least one dimension"),
        (lambda x, w, b: (x, w[0], b), r"weight must have 2 dimensions \[D, C\]"),
        (lambda x, w, b: (x, w.to("meta"), b), r"weight must be on the device of x \(cpu\), got meta"),
        (lambda x, w, b: (x, w, b, "tanh"), "activation must be None or one of relu, gelu, .*, got 'tanh'"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises((ValueError, TypeError), match=f"linear: {message}"):
        vt.linear(*change(*layer()))


def test_mlp_names_the_layer_that_does_not_fit():
    x, w1, b1 = layer()
    with pytest.raises(ValueError, match=r"mlp: w2 must have shape \[D, 48\], got \[48, 32\]"):
        vt.mlp(x, w1, b1, w1, None)
    with pytest.raises(ValueError, match=r"mlp: b2 must have shape \[32\], got \[48\]"):
        vt.mlp(x, w1, b1, w1.T, b1)


def test_layers_without_channels():
    bias = torch.randn(7)
    assert torch.equal(vt.linear(torch.randn(5, 0), torch.randn(7, 0), bias), bias.expand(5, 7))
    assert vt.linear(torch.randn(5, 3), torch.randn(0, 3)).shape == (5, 0)


def test_autocast_casts_as_torch_does():
    x, weight, bias = (value.requires_grad_() for value in layer())
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = vt.linear(x, weight, bias), F.linear(x, weight, bias)
    assert out.dtype == expected.dtype == torch.bfloat16 and torch.equal(out, expected)
    assert {grad.dtype for grad in torch.autograd.grad(out.float().sum(), (x, weight, bias))} == {torch.float32}
