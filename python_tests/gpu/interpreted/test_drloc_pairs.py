"""The Triton kernels of the pairs, interpreted: the reference's results to the bit, as neither sums in another order."""

import os

import pytest
import torch

from vtkernels._core import testing
from vtkernels._core.testing import Case
from vtkernels.ops.drloc_pairs import triton as backend
from vtkernels.ops.drloc_pairs.common import Call

OP = "drloc_pairs"
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
# by default each feature once in float32, and where sums are narrowed in half precision
QUICK = {
    torch.float32: (
        "resnet", "vit_tokens", "wide", "one_token", "one_pair", "many_pairs", "channels_17", "channels_520", "signed", "signed_counted", "seeds",
        "given_int32", "given_corners", "identical_pairs", "map_slice", "channel_slice", "expanded", "empty_batch",
    ),
    torch.bfloat16: ("one_token", "given"),
    torch.float16: ("tall", "large_values"),
}  # fmt: skip


# The full run has every case in float32, and in half precision those that tell features apart.
FEATURES = (
    "swin_stage", "resnet", "vit_tokens", "wide", "one_token", "one_pair", "many_pairs", "channels_17", "channels_520", "signed", "signed_counted", "seeds",
    "given", "map_slice", "channel_slice", "expanded", "empty_batch",
)  # fmt: skip


def _chosen(dtype: torch.dtype, name: str) -> bool:
    return name in QUICK[dtype] or FULL and (dtype == torch.float32 or name in FEATURES)


def _rows() -> list:
    rows = [(case, dtype) for dtype in QUICK for case in testing.cases(OP) if _chosen(dtype, case.name)]
    return [pytest.param(case, dtype, id=f"{case.name}-{str(dtype).removeprefix('torch.')}") for case, dtype in rows]


@pytest.mark.parametrize(("case", "dtype"), _rows())
def test_everything_is_the_references_to_the_bit(case: Case, dtype: torch.dtype):
    inputs = case.inputs(dtype)
    reason = testing.why_not(OP, inputs, "triton")
    if reason is not None:
        pytest.skip(reason)
    with testing.poisoned_memory():
        found = testing.run_case(OP, inputs, "triton")
    for name, expected in testing.run_case(OP, inputs, "reference").items():
        assert torch.equal(found[name], expected), name


def test_positions_outside_are_moved_to_the_edge():
    features = torch.randn(1, 3, 4, 8)
    call = Call(features, torch.tensor([[[-5, 99, 2**40, -(2**40)]]]), 1, False, True, 0, 0)
    reason = backend.why_not("forward", call)
    if reason is not None:
        pytest.skip(reason)
    pairs, targets, positions = backend.forward(call)
    assert positions.tolist() == [[[0, 3, 2, 0]]]
    assert torch.equal(pairs[0, 0], torch.cat([features[0, 0, 3], features[0, 2, 0]]))
    torch.testing.assert_close(targets, torch.tensor([[[2 / 3, 3 / 4]]]))
