"""The Triton kernels of window attention, interpreted, under the op's contract; and what only a closer look at them shows."""

import os

import pytest
import torch
from torch import Tensor

from vtkernels._core import testing
from vtkernels._core.testing import Case
from vtkernels.ops.window_attention import triton as backend
from vtkernels.ops.window_attention.common import Call

OP = "window_attention"
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
CASES = {case.name: case for case in testing.cases(OP)}

# By default each feature once in float32, and once in a half precision where that takes another path.
QUICK = {
    torch.float32: (
        "window_3x5", "ragged_timm_masked", "head_dim_24", "dense_bias", "cosine_ragged_zeros", "large_logits_7", "dropout_ragged",
        "row_slice", "empty_batch",
    ),
    torch.bfloat16: ("half_parameters", "cosine_ragged", "cosine_large_window"),
    torch.float16: ("shift_one_axis", "cosine_ragged_zeros"),
}  # fmt: skip
HALF = (
    "swin_7x7_shifted", "swin_12x12_shifted", "swinv2_8x8_cosine", "window_5x13", "window_14",
    "ragged_masked_large_window", "dropout", "dropout_large_window", "ragged_timm", "ragged_torchvision_large_window",
    "dense_bias_large_window", "table_minus200_9", "large_logits_9",
)  # fmt: skip


# half of the work, for what smaller windows show too: made for another backend's kernel, or of more tiles than the many of window_24
REPEATED = {name for name in CASES if name.startswith("large_heads") and name != "large_heads_slice"} | {"window_16", "window_24_small_map", "window_32"}


def _rows() -> list:
    # the full run has every other case in float32, and in half precision those that tell windows and features apart
    every = {
        torch.float32: [name for name in CASES if name not in REPEATED],
        torch.bfloat16: (*QUICK[torch.bfloat16], *HALF),
        torch.float16: (*QUICK[torch.float16], "large_logits_9", "table_minus200_9"),
    }
    rows = [(CASES[name], dtype) for dtype, names in (every if FULL else QUICK).items() for name in names]
    return [pytest.param(case, dtype, id=f"{case.name}-{str(dtype).removeprefix('torch.')}") for case, dtype in rows]


def _in_full(*names: str) -> tuple[str, ...]:
    """Cases that only the full run has."""
    return names if FULL else ()


def _call(name: str, dtype: torch.dtype = torch.float32) -> tuple[Call, Tensor]:
    call = testing.call_of(OP, CASES[name].inputs(dtype))
    return call, testing.upstream_for((torch.empty(*call.qkv.shape[:3], call.channels, dtype=dtype),))[0]


@pytest.mark.parametrize(("case", "dtype"), _rows())
def test_output_and_gradients_are_within_the_tolerance_rule(case: Case, dtype: torch.dtype):
    reason = testing.why_not(OP, case.inputs(dtype), "triton")
    if reason is not None:
        pytest.skip(reason)
    with testing.poisoned_memory():
        verdicts = testing.judge(OP, "triton", case, dtype)
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


@pytest.mark.parametrize("name", ["cosine_ragged", *_in_full("dense_bias_large_window", "dropout_ragged")])
def test_repeated_calls_agree_to_the_bit(name: str):
    inputs = CASES[name].inputs(torch.float32)
    with testing.poisoned_memory():
        first, second = (testing.run_case(OP, inputs, "triton") for _ in range(2))
    for quantity, value in first.items():
        assert torch.equal(value, second[quantity]), quantity


@pytest.mark.parametrize(("forward", "backward"), [("triton", "reference"), ("reference", "triton")])
def test_saved_statistics_are_understood_by_the_other_backend(forward: str, backward: str, monkeypatch: pytest.MonkeyPatch):
    case, outcome = CASES["dropout_large_window"], {}
    inputs = case.inputs(torch.float32)
    leaves = {name: value.requires_grad_() for name, value in testing.differentiable(inputs).items()}
    # "auto" asks for the environment's choice in each phase anew
    monkeypatch.setenv("VTKERNELS_BACKEND", forward)
    out = testing.OPS[OP].public(**inputs)
    monkeypatch.setenv("VTKERNELS_BACKEND", backward)
    grads = torch.autograd.grad(out, list(leaves.values()), testing.upstream_for((out,)))
    outcome = {"output": out.detach()} | {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    verdicts = testing.judge_outcome(OP, f"{forward} then {backward}", case, torch.float32, outcome)
    assert all(verdict.passed for verdict in verdicts), "\n".join(map(str, verdicts))


@pytest.mark.parametrize(
    ("name", "programs"), [("batch_7", 6), *((("batch_7", 1), ("batch_7", 1000), ("ragged_torchvision", 6), ("five_heads", 6)) if FULL else ())]
)
def test_the_number_of_programs_changes_no_result(name: str, programs: int):
    """Shares of the work that end in the middle of a window position, one program for all, one for each item."""
    call, grad_out = _call(name)
    usual, other = (backend.small_plan(phase, call) for phase in ("forward", "backward"))
    out, statistics = backend.forward(call)
    grads = backend.backward(call, grad_out, None, statistics)
    assert torch.equal(backend.forward(call, usual._replace(programs=programs))[0], out)
    regrouped = backend.backward(call, grad_out, None, statistics, other._replace(programs=programs))
    assert torch.equal(regrouped[0], grads[0])
    for sum_here, sum_there in zip(regrouped[1:], grads[1:], strict=True):
        if sum_there is not None:
            # the same terms in another grouping
            torch.testing.assert_close(sum_here, sum_there, rtol=1e-5, atol=1e-5 * float(sum_there.abs().max()))


class Guarded:
    """Tensors with a margin on either side, to see whether a kernel reads or writes beyond its tensors."""

    MARGIN, SENTINEL = 4096, 12345.0

    def __init__(self) -> None:
        self.margins: list[Tensor] = []

    def around(self, shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> Tensor:
        count = torch.Size(shape).numel()
        memory = torch.full((count + 2 * self.MARGIN,), fill, dtype=dtype)
        self.margins += [memory[: self.MARGIN], memory[-self.MARGIN :]]
        return memory[self.MARGIN : self.MARGIN + count].view(shape)

    def copy(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor between margins of NaN: what is read there shows in the results."""
        return None if tensor is None else self.around(tuple(tensor.shape), tensor.dtype, torch.nan).copy_(tensor)

    def empty(self, *size, dtype: torch.dtype = torch.float32, device=None) -> Tensor:
        """In place of torch.empty: what is written into the margins shows in them."""
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        return self.around(shape, dtype, self.SENTINEL)

    def check(self) -> None:
        assert self.margins
        for margin in self.margins:
            assert bool(margin.isnan().all() if margin[0].isnan() else (margin == margin.new_tensor(self.SENTINEL)).all())


def _run(call: Call, grad_out: Tensor) -> list[Tensor]:
    out, statistics = backend.forward(call)
    grads = backend.backward(call, grad_out, out if statistics.numel() else None, statistics)
    return [out, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize(
    "name", ["ragged_timm_zeros", "dense_bias_large_window", *_in_full("ragged_timm", "head_dim_24", "cosine_ragged", "dense_bias", "ragged_timm_large_window")]
)
def test_nothing_beyond_a_tensor_is_read_or_written(name: str, monkeypatch: pytest.MonkeyPatch):
    call, grad_out = _call(name)
    plain, guarded = _run(call, grad_out), Guarded()
    call = call._replace(**{field: guarded.copy(getattr(call, field)) for field in ("qkv", "bias_table", "bias", "logit_scale", "qkv_bias")})
    grad_out = guarded.copy(grad_out)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", guarded.empty)
        found = _run(call, grad_out)
    guarded.check()
    for value, expected in zip(found, plain, strict=True):
        assert torch.equal(value, expected)


def test_not_a_number_stays_in_its_window():
    call, grad_out = _call("window_4")
    poisoned = call.qkv.clone()
    # the first window of the second image, in the shifted order
    poisoned[1, 4, 5, 3] = torch.nan
    clean, dirty = (_attend(call._replace(qkv=qkv), grad_out) for qkv in (call.qkv, poisoned))
    for before, after in zip(clean, dirty, strict=True):
        touched = after.isnan().any(-1)
        window = torch.zeros_like(touched)
        window[1, 2:6, 2:6] = True
        assert bool(touched.any()) and bool((touched <= window).all())
        assert torch.equal(before[~window], after[~window])


def _attend(call: Call, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    out, statistics = backend.forward(call)
    return out, backend.backward(call, grad_out, None, statistics)[0]
