"""The Triton kernels of consistency and AugMix loss, interpreted, under the contract; and what only a closer look at them shows."""

import os

import pytest
import torch
from torch import Tensor

from vtkernels._core import testing
from vtkernels._core.testing import Case
from vtkernels.ops.jsd import triton as backend

OPS = ("jsd_consistency", "augmix_loss")
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
CASES = {(op, case.name): case for op in OPS for case in testing.cases(op)}

# By default each feature once in float32, and once in a half precision where that takes another path.
QUICK = {
    torch.float32: {
        "jsd_consistency": ("two_views", "five_views", "one_class", "sharp", "underflow_10", "row_slice", "transposed", "weighted", "none", "empty_batch"),
        "augmix_loss": ("cifar", "imagenet", "smoothed_10", "soft_smoothed_10", "no_consistency"),
    },
    torch.bfloat16: {"jsd_consistency": ("classes_33",), "augmix_loss": ("cifar", "soft_10", "soft_in_half")},
    torch.float16: {"jsd_consistency": ("large_offset_10",), "augmix_loss": ("soft_300",)},
}


# The full run has every case in float32, and in half precision those that tell features apart.
FEATURES = (
    "cifar", "imagenet", "imagenet_21k", "two_views", "nine_views", "one_class", "classes_33", "classes_65", "empty_batch", "sharp", "underflow_10",
    "large_offset_10", "large_offset_200", "row_slice", "transposed", "weighted", "sum", "none", "no_consistency", "smoothed_10", "soft_smoothed_10",
)  # fmt: skip


def _chosen(dtype: torch.dtype, op: str, name: str) -> bool:
    return name in QUICK[dtype][op] or FULL and (dtype == torch.float32 or name in FEATURES)


def _rows() -> list:
    chosen = [(op, name, dtype) for dtype in QUICK for op, name in CASES if _chosen(dtype, op, name)]
    return [pytest.param(op, CASES[op, name], dtype, id=f"{op}-{name}-{str(dtype).removeprefix('torch.')}") for op, name, dtype in chosen]


@pytest.mark.parametrize(("op", "case", "dtype"), _rows())
def test_output_and_gradients_are_within_the_tolerance_rule(op: str, case: Case, dtype: torch.dtype):
    reason = testing.why_not(op, case.inputs(dtype), "triton")
    if reason is not None:
        pytest.skip(reason)
    with testing.poisoned_memory():
        verdicts = testing.judge(op, "triton", case, dtype)
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


def _both_phases(call, plan: backend.Plan | None) -> tuple[Tensor, Tensor, Tensor]:
    loss, written = backend.forward(call, True, plan)
    return loss, written, backend.backward(call, torch.tensor(0.5), plan)


@pytest.mark.parametrize(("op", "name"), [("jsd_consistency", "sharp"), ("augmix_loss", "smoothed_300"), ("augmix_loss", "soft_smoothed_300")])
def test_tiles_and_whole_rows_agree(op: str, name: str):
    """The kernel for long rows on short ones, with a last tile that is partly beyond the classes."""
    call = testing.call_of(op, CASES[op, name].inputs(torch.float32))
    whole, tiled = (_both_phases(call, plan) for plan in (None, backend.Plan(True, 64, 4)))
    assert not backend.make_plan(call).tiled
    for found, expected in zip(tiled, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    # without a factor of its own, or with one
    torch.testing.assert_close(whole[1] * 0.5, whole[2], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_a_target_that_names_no_class_makes_its_sample_nan_and_reads_nothing(tiled: bool, wrong: int):
    call = testing.call_of("augmix_loss", CASES["augmix_loss", "cifar"].inputs(torch.float32))
    target = call.target.clone()
    target[4] = wrong
    plan = backend.Plan(tiled, 16, 1)
    expected = backend.backward(call, torch.ones(()), plan)
    loss, gradient = backend.forward(call._replace(target=target), True, plan)
    assert bool(loss.isnan())
    # of the clean view: the others have no part in the cross-entropy
    touched = gradient.isnan().all(-1)
    assert touched.nonzero().tolist() == [[4]]
    assert torch.equal(gradient[~touched], expected[~touched])


@pytest.mark.parametrize("tiled", [False, True])
def test_nothing_beyond_a_tensor_is_read_or_written(tiled: bool, monkeypatch: pytest.MonkeyPatch):
    call, plan = testing.call_of("augmix_loss", CASES["augmix_loss", "soft_10"].inputs(torch.float32)), backend.Plan(tiled, 16, 1)
    expected = _both_phases(call, plan)
    margins = []

    def around(shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> Tensor:
        count, margin = torch.Size(shape).numel(), 256
        memory = torch.full((count + 2 * margin,), fill, dtype=dtype)
        margins.extend((memory[:margin], memory[-margin:]))
        return memory[margin : margin + count].view(shape)

    def empty(*size, dtype: torch.dtype = torch.float32, device=None) -> Tensor:
        return around(tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size, dtype, torch.inf)

    call = call._replace(
        **{name: around(tuple(value.shape), value.dtype, torch.nan).copy_(value) for name, value in zip(("logits", "target"), call[:2], strict=True)}
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        found = _both_phases(call, plan)
    assert all(bool(margin.isnan().all() or margin.isposinf().all()) for margin in margins)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
