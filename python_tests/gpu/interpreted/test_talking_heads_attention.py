"""The Triton kernels of talking-heads attention, interpreted, under the op's contract; and what only a closer look at them shows."""

import os

import pytest
import torch
from torch import Tensor

from vtkernels._core import testing
from vtkernels._core.testing import Case
from vtkernels.ops.talking_heads_attention import triton as backend
from vtkernels.ops.talking_heads_attention.cases import cases

OP = "talking_heads_attention"
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
CASES = {case.name: case for case in cases()}

# By default each feature once in float32, and once in a half precision where that takes another path.
QUICK = {
    torch.float32: (
        "one_token", "tokens_33", "one_head", "heads_3", "head_dim_20", "post_bias_only", "transposed_weights", "large_logits", "dropout",
        "token_slice", "channels_first", "empty_batch",
    ),
    torch.bfloat16: ("tokens_17", "half_parameters"),
    torch.float16: ("half_overflow",),
}  # fmt: skip
# The full run has every case in float32, and in half precision those that tell features apart.
FEATURES = (
    "cait_xxs", "one_token", "tokens_33", "one_head", "heads_3", "head_dim_20", "head_dim_64", "no_biases", "post_bias_only", "pre_bias_only",
    "transposed_weights", "large_logits", "dropout", "token_slice", "channels_first", "empty_batch",
)  # fmt: skip
# four fifths of the work: tokens_129 has many blocks too, heads_13 and cait_xs_112 uneven heads and even ones
LONG = ("cait_xxs_224", "cait_s_224", "cait_m_160", "tokens_127", "tokens_300", "heads_9", "heads_12")


def _rows() -> list:
    every = {dtype: dict.fromkeys((*names, *FEATURES)) for dtype, names in QUICK.items()} | {torch.float32: [name for name in CASES if name not in LONG]}
    rows = [(CASES[name], dtype) for dtype, names in (every if FULL else QUICK).items() for name in names]
    return [pytest.param(case, dtype, id=f"{case.name}-{str(dtype).removeprefix('torch.')}") for case, dtype in rows]


@pytest.mark.parametrize(("case", "dtype"), _rows())
def test_output_and_gradients_are_within_the_tolerance_rule(case: Case, dtype: torch.dtype):
    reason = testing.why_not(OP, case.inputs(dtype), "triton")
    if reason is not None:
        pytest.skip(reason)
    with testing.poisoned_memory():
        verdicts = testing.judge(OP, "triton", case, dtype)
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


def test_repeated_calls_agree_to_the_bit():
    inputs = CASES["heads_3"].inputs(torch.float32)
    with testing.poisoned_memory():
        first, second = (testing.run_case(OP, inputs, "triton") for _ in range(2))
    for quantity, value in first.items():
        assert torch.equal(value, second[quantity]), quantity


def test_nothing_beyond_a_tensor_is_read_or_written(monkeypatch: pytest.MonkeyPatch):
    """Inputs between margins of NaN, which would show in the results; results between margins that must stay as they are."""
    call = testing.call_of(OP, CASES["tokens_17"].inputs(torch.float32))
    grad_out = testing.upstream_for((torch.empty(*call.qkv.shape[:2], call.channels),))[0]
    margins: list[Tensor] = []

    def around(shape: tuple[int, ...], fill: float) -> Tensor:
        memory = torch.full((torch.Size(shape).numel() + 2048,), fill)
        margins.extend((memory[:1024], memory[-1024:]))
        return memory[1024:-1024].view(shape)

    def empty(*size, dtype: torch.dtype = torch.float32, device=None) -> Tensor:
        return around(tuple(size[0]) if not isinstance(size[0], int) else size, 12345.0)

    plain = [backend.forward(call), *backend.backward(call, grad_out)]
    guarded = call._replace(**{field: around(tuple(value.shape), torch.nan).copy_(value) for field, value in call._asdict().items() if torch.is_tensor(value)})
    grad_out = around(tuple(grad_out.shape), torch.nan).copy_(grad_out)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        found = [backend.forward(guarded), *backend.backward(guarded, grad_out)]
    for margin in margins:
        assert bool(margin.isnan().all() if margin[0].isnan() else (margin == 12345.0).all())
    for value, expected in zip(found, plain, strict=True):
        assert torch.equal(value, expected)
