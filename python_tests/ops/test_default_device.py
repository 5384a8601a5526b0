"""Ops go by the devices of their tensors, whatever torch's default device is."""

import pytest
import torch

from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels.ops.sam import pointer_table


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_a_default_device_reaches_no_kernel(op, backend):
    if backend not in OPS[op].backend_names:
        pytest.skip(f"{op} has no {backend} backend")
    inputs = next(case for case in testing.cases(op) if case.representative).inputs(torch.float32)
    if reason := testing.why_not(op, inputs, backend):
        pytest.skip(reason)
    expected = testing.run_case(op, inputs, backend)
    # on GPUs it is usually `cuda`
    with torch.device("meta"):
        found = testing.run_case(op, inputs, backend)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)


def test_the_map_of_chunks_is_made_on_the_host():
    with torch.device("meta"):
        words = pointer_table.chunk_map.__wrapped__((5, pointer_table.CHUNK + 1, 0, 1))
    assert words.tolist() == [0, 1 << 32, 1 << 32 | 1, 3 << 32]
