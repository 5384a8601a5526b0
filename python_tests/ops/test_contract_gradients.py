"""The contract of differentiable ops: gradients, and what tracing makes of them."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest
import torch
from contract import (
    DIFFERENTIABLE,
    DTYPES,
    as_function,
    assert_same,
    assert_within_budget,
    default_backend,
    every_case,
    in_dtypes,
    inputs_for,
    on_every_device,
    representative_cases,
    representative_cases_of_any_backend,
)

from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import Inputs


@on_every_device
@representative_cases(DIFFERENTIABLE)
def test_opcheck(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    leaves = {name: value.clone().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    with recorded_calls(op) as calls:
        output = testing.outputs_of(OPS[op].public(**{**inputs, **leaves}, backend=backend))["output"]
        output.backward(torch.ones_like(output))
    assert [name for name, _ in calls] == [op, f"{op}_backward"]
    for name, arguments in calls:
        overload = getattr(torch.ops.vtkernels, name).default
        # what the backward's own gradients are is asked below: here they would take minutes
        detached = tuple(value.detach() if isinstance(value, torch.Tensor) and name != op else value for value in arguments)
        torch.library.opcheck(overload, detached)


@on_every_device
@representative_cases(DIFFERENTIABLE)
def test_results_may_be_written_in_place(op, backend, case, device):
    """As activations in place do. Torch forbids it on results that count as views."""
    inputs = inputs_for(op, backend, case, device)
    leaves = {name: value.clone().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    output = testing.outputs_of(OPS[op].public(**{**inputs, **leaves}, backend=backend))["output"]
    expected = 2 * output.detach()
    torch.testing.assert_close(output.mul_(2).detach(), expected, equal_nan=True)


@contextlib.contextmanager
def recorded_calls(op: str) -> Iterator[list]:
    """The dispatcher calls of an op and its backward, with their arguments."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Forward(TorchFunctionMode):
        # above autograd: the arguments still require gradients
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is getattr(torch.ops.vtkernels, op).default:
                calls.append((op, args))
            return function(*args, **(kwargs or {}))

    class Backward(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is getattr(torch.ops.vtkernels, f"{op}_backward").default:
                calls.append((f"{op}_backward", args))
            return function(*args, **(kwargs or {}))

    with Forward(), Backward():
        yield calls


@on_every_device
@representative_cases(DIFFERENTIABLE)
def test_compiles_into_one_graph(op, backend, case, device, fresh_compiler):
    inputs = inputs_for(op, backend, case, device)
    expected = testing.run_case(op, inputs, backend)
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    compiled = torch.compile(as_function(op, inputs, backend), fullgraph=True, backend="aot_eager")
    outputs = testing.outputs_of(compiled(leaves))
    grads = torch.autograd.grad(outputs["output"], list(leaves.values()), testing.upstream_for((outputs["output"],)))
    assert_same(outputs | {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}, expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_inductor_compiles_it(op, fresh_compiler):
    case = next(case for case in testing.cases(op) if case.representative)
    inputs = case.inputs(torch.float32)
    expected = testing.run_case(op, inputs, "auto")
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    outputs = testing.outputs_of(torch.compile(as_function(op, inputs, "auto"), fullgraph=True)(leaves))
    grads = torch.autograd.grad(outputs["output"], list(leaves.values()), testing.upstream_for((outputs["output"],)))
    assert_same(outputs | {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}, expected)


@on_every_device
@representative_cases(DIFFERENTIABLE)
def test_exports(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    function = as_function(op, inputs, backend)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return function(tensors)

    tensors = testing.differentiable(inputs)
    program = torch.export.export(Module(), (tensors,))
    assert_same(testing.outputs_of(program.module()(tensors)), testing.outputs_of(function(tensors)))


@on_every_device
@representative_cases(DIFFERENTIABLE)
def test_autocast_keeps_the_dtype_of_each_gradient(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    with torch.autocast(device, torch.bfloat16):
        outcome = testing.run_case(op, inputs, backend)
    for name, value in testing.differentiable(inputs).items():
        assert outcome[f"gradient of {name}"].dtype == value.dtype
    assert all(value.isfinite().all() for value in outcome.values())


@on_every_device
@representative_cases(DIFFERENTIABLE)
def test_upstream_gradient_of_any_strides(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    output = testing.run_case(op, inputs, backend)["output"]
    dense = torch.ones_like(output)
    expected = testing.run_case(op, inputs, backend, (dense,))
    views = {
        "expanded, as sum().backward() makes it": torch.ones((), device=device).expand(output.shape),
        "transposed": torch.ones(output.shape[::-1], device=device).permute(tuple(reversed(range(output.dim())))),
    }
    for name, view in views.items():
        found = testing.run_case(op, inputs, backend, (view,))
        for quantity, value in expected.items():
            assert torch.equal(found[quantity], value), f"{quantity}, upstream gradient {name}"


@on_every_device
@in_dtypes(*DTYPES[:2])
@every_case(DIFFERENTIABLE)
def test_forward_and_backward_of_different_backends(op, backend, case, dtype, device):
    """What the forward saves is neutral: the reference's forward serves any backward, and its backward any forward."""
    if backend == "reference":
        pytest.skip("both would be the reference")
    inputs = inputs_for(op, backend, case, device, dtype)
    for first, second in (("reference", backend), (backend, "reference")):
        verdicts = testing.judge_outcome(op, f"{first}, then {second}", case, dtype, run_on_two(op, inputs, first, second), device)
        assert_within_budget(verdicts)


def run_on_two(op: str, inputs: Inputs, forward: str, backward: str) -> testing.Outcome:
    """`run_case` with the default backend changed between forward and backward."""
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    with default_backend(forward):
        outputs = testing.outputs_of(OPS[op].public(**{**inputs, **leaves}))
    with default_backend(backward):
        grads = torch.autograd.grad(outputs["output"], list(leaves.values()), testing.upstream_for((outputs["output"],)))
    return {name: output.detach() for name, output in outputs.items()} | {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


@on_every_device
@every_case(DIFFERENTIABLE)
def test_gradients_not_asked_for_change_nothing(op, backend, case, device):
    """Frozen parameters: the other gradients keep every bit."""
    inputs = inputs_for(op, backend, case, device)
    expected = testing.run_case(op, inputs, backend)
    main = next(iter(testing.differentiable(inputs)))
    leaf = inputs[main].detach().requires_grad_()
    output = testing.outputs_of(OPS[op].public(**{**inputs, main: leaf}, backend=backend))["output"]
    (grad,) = torch.autograd.grad(output, leaf, testing.upstream_for((output,)))
    assert_same({f"gradient of {main}": grad}, {f"gradient of {main}": expected[f"gradient of {main}"]})


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_inputs_are_left_alone(op):
    for backend in OPS[op].backend_names:
        for case in testing.cases(op):
            inputs = case.inputs(torch.float32)
            if testing.why_not(op, inputs, backend) is not None:
                continue
            before = {name: value.clone() for name, value in testing.differentiable(inputs).items()}
            testing.run_case(op, inputs, backend)
            assert all(torch.equal(inputs[name], value) for name, value in before.items()), f"{backend}, {case.name}"


@in_dtypes(*DTYPES[:2])
@representative_cases(DIFFERENTIABLE)
def test_second_derivatives(op, backend, case, dtype):
    """Held to the reference in float64, by what the reference errs in this dtype. Some cancel, so that noise is all there is: it is measured by the largest."""
    inputs = inputs_for(op, backend, case, "cpu", dtype)
    found, yardstick = second_derivatives(op, inputs, backend), second_derivatives(op, inputs, "reference")
    truth = second_derivatives(op, testing.in_dtype(inputs, torch.float64, case.fixed), "reference")
    largest = max((float(value.abs().max()) for value in truth.values() if value.numel()), default=0.0)
    for name, exact in truth.items():
        if exact.numel():
            assert found[name].dtype == inputs[name].dtype
            error, allowed = (float((values[name].double() - exact).abs().max()) for values in (found, yardstick))
            budget = testing.GRADIENT_FACTOR * (allowed + torch.finfo(dtype).eps * largest)
            assert error <= budget, f"{name} is off by {error:.3g}, the reference by {allowed:.3g}, which allows {budget:.3g}"


def second_derivatives(op: str, inputs: Inputs, backend: str) -> dict[str, torch.Tensor]:
    """Gradients of the squares of an op's gradients, by input."""
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    output = testing.outputs_of(OPS[op].public(**{**inputs, **leaves}, backend=backend))["output"]
    # a square: the gradient of a linear op depends on its input only through what comes after it
    first = torch.autograd.grad(output.double().square().sum(), list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(sum(grad.double().square().sum() for grad in first), list(leaves.values()))
    return dict(zip(leaves, second, strict=True))


@representative_cases_of_any_backend(DIFFERENTIABLE)
def test_second_derivatives_against_finite_differences(op, case):
    check_by_finite_differences(torch.autograd.gradgradcheck, op, case)


@representative_cases_of_any_backend(DIFFERENTIABLE)
def test_the_reference_formula_against_finite_differences(op, case):
    check_by_finite_differences(torch.autograd.gradcheck, op, case)


def check_by_finite_differences(check, op, case):
    inputs = testing.in_dtype(case.inputs(torch.float64), torch.float64)
    tensors = testing.differentiable(inputs)
    function = as_function(op, inputs, "reference")

    def of_leaves(*values):
        return testing.outputs_of(function(dict(zip(tensors, values, strict=True))))["output"]

    leaves = tuple(value.detach().requires_grad_() for value in tensors.values())
    if any(leaf.numel() == 0 for leaf in leaves):
        pytest.skip("an empty input has no finite differences")
    assert check(of_leaves, leaves, fast_mode=True)
