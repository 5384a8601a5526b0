"""The contract of every op: on every backend, for every case. An op joins by being defined.

What differentiable ops promise beyond it is in test_contract_gradients.py, what in-place ops do in test_contract_in_place.py.
"""

import copy
import os

import pytest
import torch
from contract import DTYPES, assert_same, assert_within_budget, every_case, in_dtypes, inputs_for, on_every_device
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import vtkernels
from vtkernels._core import testing
from vtkernels._core.op import OPS


@on_every_device
@in_dtypes(*DTYPES)
@every_case(list(OPS), judge=False)
def test_everything_is_within_the_tolerance_rule(op, backend, case, dtype, device):
    """The reference is the judge; golden numbers, peers and finite differences judge it."""
    inputs_for(op, backend, case, device, dtype)
    # poisoned: what a kernel forgets to write is NaN
    with testing.poisoned_memory():
        verdicts = testing.judge(op, backend, case, dtype, device)
    assert_within_budget(verdicts)


@on_every_device
@every_case(list(OPS))
def test_repeated_calls_agree_to_the_bit(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    first = testing.run_case(op, inputs, backend)
    with testing.poisoned_memory():
        assert_same(testing.run_case(op, inputs, backend), first)


@on_every_device
@every_case(list(OPS))
def test_metadata_is_what_the_fake_promises(op, backend, case, device):
    inputs = inputs_for(op, backend, case, device)
    real = testing.run_case(op, inputs, backend)
    with FakeTensorMode() as mode:
        run = testing.run_case if testing.has_gradients(op) else testing.run_in_place
        fake = run(op, tree_map_only(torch.Tensor, mode.from_tensor, inputs), backend)
    for name, value in real.items():
        promised = fake[name]
        assert (value.shape, value.dtype, value.device) == (promised.shape, promised.dtype, promised.device), name
        assert value.numel() == 0 or value.stride() == promised.stride(), f"{name}: strides {value.stride()}, promised {promised.stride()}"


@pytest.mark.parametrize("op", list(OPS))
def test_an_impossible_request_raises_with_the_reason(op):
    """Each backend is asked for every case in every dtype: where it says it cannot, it must raise, repeat why, and touch nothing."""
    refused = 0
    for case in testing.cases(op):
        for dtype in (torch.float32, torch.float64):
            inputs = case.inputs(dtype)
            before = testing.tensors_of(copy.deepcopy(inputs))
            for backend in OPS[op].backend_names:
                reason = vtkernels.explain(op, **inputs, backend=backend).reasons["forward"][backend]
                if reason is None:
                    continue
                refused += 1
                with pytest.raises(RuntimeError) as caught:
                    OPS[op].public(**inputs, backend=backend)
                assert backend in str(caught.value) and reason in str(caught.value) and "try" in str(caught.value)
                assert_same(testing.tensors_of(inputs), before)
    assert refused, "no case is impossible anywhere: add one"


@pytest.mark.parametrize("op", list(OPS))
def test_an_unknown_backend_is_refused_by_name(op):
    inputs = testing.cases(op)[0].inputs(torch.float32)
    with pytest.raises(ValueError, match=r"must be one of auto, .*reference, got 'fast'"):
        OPS[op].public(**inputs, backend="fast")


@pytest.mark.skipif(os.environ.get("CI", "").lower() not in ("1", "true"), reason="asked of CI only")
def test_ci_has_the_native_library():
    from vtkernels._core import native

    assert native.why_missing() is None
