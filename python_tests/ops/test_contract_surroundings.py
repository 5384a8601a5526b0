"""The contract wherever an op is called: torch's settings around it change nothing, and what it cannot take is refused by name."""

import contextlib
import re

import pytest
import torch
from contract import DIFFERENTIABLE, as_function, assert_same, inputs_for, representative_cases

from vtkernels._core import native, testing
from vtkernels._core.op import OPS


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def first_inputs(op):
    return next(case for case in testing.cases(op) if case.representative).inputs(torch.float32)


@representative_cases(list(OPS))
def test_the_default_dtype_is_none_of_the_kernels_business(op, backend, case):
    inputs = inputs_for(op, backend, case, "cpu")
    expected = testing.run_case(op, inputs, backend)
    with default_dtype(torch.float64):
        found = testing.run_case(op, inputs, backend)
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in expected.items()}
    assert_same(found, expected)


@pytest.mark.skipif(native.why_missing() is not None, reason="needs the native library")
def test_native_kernels_refuse_buffers_that_do_not_fit():
    """Larger ones here: memory past the end of a smaller one would not be ours to write."""
    wide, x, weight = torch.empty((), dtype=torch.float64), torch.ones(2, 8), torch.ones(8, 8)
    ops = torch.ops.vtkernels_native
    with pytest.raises(RuntimeError, match="in float32 only"):
        ops.jsd.default(torch.zeros(6, 10), None, None, 3, [0.25, 0.25, 0.5], 1.0, 0.0, 0.5, wide, None)
    with pytest.raises(RuntimeError, match="before must be what the forward kept"):
        ops.activation_backward.default(x, torch.ones(2, 9), 1, torch.empty(2, 9))
    with pytest.raises(RuntimeError, match="hidden must be what the forward kept"):
        ops.mlp_backward.default(x, x, weight, weight, torch.ones(3, 8), 1, torch.empty(3, 8), None, None, None, None, None)


@representative_cases(DIFFERENTIABLE)
def test_autocast_around_a_backward_casts_nothing(op, backend, case):
    """The forward ran without it; neither the gradients nor theirs may be rounded."""
    inputs = inputs_for(op, backend, case, "cpu")
    without, under = (derivatives(op, inputs, backend, enabled) for enabled in (False, True))
    assert_same(under, without)


def derivatives(op, inputs, backend, autocast):
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    output = testing.outputs_of(OPS[op].public(**{**inputs, **leaves}, backend=backend))["output"]
    loss = output.double().square().sum()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(grad.double().square().sum() for grad in first), list(leaves.values()))
    return {f"gradient {i}": grad.detach() for i, grad in enumerate((*first, *second))}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@representative_cases(DIFFERENTIABLE)
def test_many_gradients_at_once(op, backend, case):
    inputs = inputs_for(op, backend, case, "cpu")
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    output = as_function(op, inputs, backend)(leaves)
    output = testing.outputs_of(output)["output"]
    expected = testing.run_case(op, inputs, backend)
    (upstream,) = testing.upstream_for((output,))
    found = torch.autograd.grad(output, list(leaves.values()), torch.stack((upstream, torch.zeros_like(upstream))), is_grads_batched=True)
    for name, grad in zip(leaves, found, strict=True):
        torch.testing.assert_close(grad[0], expected[f"gradient of {name}"])
        assert not grad[1].any()


def strange(tensor):
    """Tensors that are not dense, and what the error calls them."""
    pieces = [torch.zeros(2, 3), torch.zeros(3, 3)]
    found = [(torch.nested.nested_tensor(pieces, layout=torch.strided), "a nested tensor"), (tensor.to_sparse(), "torch.sparse_coo")]
    return found + ([(tensor.to_mkldnn(), "torch._mkldnn")] if torch.backends.mkldnn.is_available() and tensor.is_floating_point() else [])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_tensors_that_are_not_dense_are_refused(op):
    inputs = first_inputs(op)
    for name, value in testing.tensors_of(inputs).items():
        for wrong, called in strange(value):
            with pytest.raises(TypeError, match=f"{op}: {name} must be dense, got {called}; try {name}.to_"):
                OPS[op].public(**inputs | {name: wrong})


WITH_SCALE = ("window_attention", "class_attention", "pooled_attention", "talking_heads_attention")


@pytest.mark.parametrize("op", WITH_SCALE)
def test_a_scale_is_a_finite_number(op):
    inputs = first_inputs(op)
    for wrong in ("1", [1.0], True, 1j, torch.tensor(1.0)):
        with pytest.raises(TypeError, match=re.escape(f"{op}: scale must be a number, got {wrong!r}; ")):
            OPS[op].public(**inputs | {"scale": wrong})
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{op}: scale must be finite, got {wrong}; "):
            OPS[op].public(**inputs | {"scale": wrong})
    assert torch.isfinite(OPS[op].public(**inputs | {"scale": 2})).all()


@pytest.mark.parametrize(
    ("op", "name", "value", "message"),
    [
        ("window_attention", "mask_padding", "yes", "mask_padding must be True or False, got 'yes'; try bool()"),
        ("window_attention", "shift_first", None, "shift_first must be True or False, got None; try bool()"),
        ("class_attention", "return_probs", 1, "return_probs must be True or False, got 1; try bool()"),
        ("drloc_pairs", "normalize", "no", "normalize must be True or False, got 'no'; try bool()"),
        ("drloc_pairs", "layout", ["bhwc"], "layout must be one of bhwc, bchw, bnc, got ['bhwc']; bhwc has the channels last"),
        ("drloc_pairs", "num_pairs", 2**70, f"the number of pairs must be below 2 ** 31, got {2**70}; the paper uses 64"),
        ("drloc_pairs", "offset", None, "offset must be an int, got None; 0 is the first draw of a seed"),
        ("drloc_pairs", "offset", 2**63, f"offset must fit 64 bits with a sign, got {2**63}; try offset % 2**63"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(op, name, value, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(f"{op}: {message}")):
        OPS[op].public(**first_inputs(op) | {name: value})


def test_a_scale_may_be_made_of_a_symbolic_size(fresh_compiler):
    model = torch.compile(lambda q: OPS["pooled_attention"].public(q, q, q, scale=q.shape[3] ** -0.5), backend="aot_eager", fullgraph=True, dynamic=True)
    q = torch.ones(1, 2, 3, 8)
    torch.testing.assert_close(model(q), q)
