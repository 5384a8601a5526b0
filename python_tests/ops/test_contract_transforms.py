"""The contract under torch.func and in forward mode: right, or refused; never silently zero."""

import pytest
import torch
from contract import DIFFERENTIABLE, as_function, inputs_for, representative_cases
from torch.autograd import forward_ad

from vtkernels._core import testing
from vtkernels._core.op import OPS


def first_case(op):
    return next(case for case in testing.cases(op) if case.representative)


@representative_cases(DIFFERENTIABLE)
def test_torch_func_gives_the_same_gradients(op, backend, case):
    inputs = inputs_for(op, backend, case, "cpu")
    function = as_function(op, inputs, backend)
    tensors = testing.differentiable(inputs)
    expected = testing.run_case(op, inputs, backend)
    output, pull = torch.func.vjp(lambda tensors: testing.outputs_of(function(tensors))["output"], tensors)
    assert torch.equal(output, expected["output"])
    (grads,) = pull(*testing.upstream_for((output,)))
    for name, grad in grads.items():
        assert torch.equal(grad, expected[f"gradient of {name}"]), name


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_vmap_runs_the_op_once_for_each(op):
    inputs = first_case(op).inputs(torch.float32)
    function = as_function(op, inputs, "auto")
    tensors = testing.differentiable(inputs)
    pairs = {name: torch.stack((value, 0.5 * value)) for name, value in tensors.items()}
    gradient = torch.func.grad(lambda tensors: testing.outputs_of(function(tensors))["output"].square().sum())
    batched = torch.func.vmap(gradient)(pairs)
    for index, factor in enumerate((1.0, 0.5)):
        alone = gradient({name: factor * value for name, value in tensors.items()})
        for name, value in alone.items():
            torch.testing.assert_close(batched[name][index], value)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_forward_mode_is_refused(op):
    inputs = first_case(op).inputs(torch.float32)
    main = next(iter(testing.differentiable(inputs)))
    for needs_grad in (False, True):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
            leaf = inputs[main].clone().requires_grad_(needs_grad)
            OPS[op].public(**{**inputs, main: forward_ad.make_dual(leaf, torch.ones_like(leaf))})


@pytest.mark.parametrize("op", [op for op in DIFFERENTIABLE if op != "drloc_pairs"])
def test_nested_transforms_are_refused(op):
    inputs = first_case(op).inputs(torch.float32)
    function = as_function(op, inputs, "auto")

    def length(tensors):
        grads = torch.func.grad(lambda tensors: testing.outputs_of(function(tensors))["output"].square().sum())(tensors)
        return sum(grad.square().sum() for grad in grads.values())

    with pytest.raises(NotImplementedError, match="second derivatives by torch.func"):
        torch.func.grad(length)(testing.differentiable(inputs))


def test_a_row_of_zeros_has_second_derivatives():
    """Cosine attention divides rows by their norm, which padding makes 0."""
    qkv = torch.randn(2, 6, 5, 48, generator=torch.Generator().manual_seed(0))
    qkv[0, 0, 0] = 0
    qkv.requires_grad_()
    output = OPS["window_attention"].public(qkv, num_heads=2, window_size=4, shift_size=2, logit_scale=torch.full((2,), 2.0))
    (first,) = torch.autograd.grad(output.square().sum(), qkv, create_graph=True)
    (second,) = torch.autograd.grad(first[1].square().sum(), qkv)
    assert second.isfinite().all()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients_through_vmap(op):
    """Here tensors that are differentiated do not say that they require it."""
    for backend in OPS[op].backend_names:
        inputs = first_case(op).inputs(torch.float32)
        if testing.why_not(op, inputs, backend) is not None:
            continue
        function = as_function(op, inputs, backend)
        expected = testing.run_case(op, inputs, backend)
        pairs = {name: torch.stack((value, value)) for name, value in testing.differentiable(inputs).items()}
        (upstream,) = testing.upstream_for((expected["output"],))
        many = torch.func.vmap(lambda tensors, function=function: testing.outputs_of(function(tensors))["output"])
        found = torch.func.grad(lambda pairs, many=many, upstream=upstream: (many(pairs) * upstream).sum())(pairs)
        for name, grad in found.items():
            for one in grad:
                torch.testing.assert_close(one, expected[f"gradient of {name}"])
