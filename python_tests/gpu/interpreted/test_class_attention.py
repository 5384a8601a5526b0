"""The Triton kernels of class and pooled attention, interpreted, under the op's contract."""

import os

import pytest
import torch

from vtkernels._core import testing

FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
CASES = {(op, case.name): case for op in ("class_attention", "pooled_attention") for case in testing.cases(op) if case.name != "cait_m36_384"}

# By default each feature once in float32, and once in a half precision where that takes another path.
QUICK = {
    torch.float32: {
        "class_attention": ("class_token_alone", "channels_35", "heads_17", "tokens_65", "dropout_many_heads", "dropout_one_token", "k_bias_alone",
                            "channels_first", "empty_batch", "large_logits"),
        "pooled_attention": ("deit_distilled", "queries_17", "keys_65", "keys_1", "dim_40", "dropout", "heads_last", "expanded_query", "empty_batch"),
    },
    torch.bfloat16: {"class_attention": ("cait_xs24", "half_parameters", "dropout"), "pooled_attention": ("one_query", "dropout")},
    torch.float16: {"class_attention": ("large_offset",), "pooled_attention": ("large_logits",)},
}  # fmt: skip


# The full run has every case in float32, and in half precision those that tell features apart.
FEATURES = {
    "class_attention": ("cait_xs24", "class_token_alone", "tokens_17", "heads_17", "head_dim_20", "channels_35", "batch_9", "empty_batch", "no_biases",
                        "q_and_v_bias", "k_bias_alone", "transposed_weights", "large_logits", "dropout", "channel_slice", "channels_first"),
    "pooled_attention": ("one_query", "deit_distilled", "queries_17", "keys_1", "keys_65", "dim_5", "dim_40", "more_queries_than_keys", "empty_batch",
                         "large_logits", "dropout", "heads_last", "last_not_dense", "expanded_query"),
}  # fmt: skip


def _chosen(dtype: torch.dtype, op: str, name: str) -> bool:
    return name in QUICK[dtype][op] or FULL and (dtype == torch.float32 or name in FEATURES[op])


def _rows() -> list:
    chosen = [(*key, dtype) for dtype in QUICK for key in CASES if _chosen(dtype, *key)]
    return [pytest.param(op, name, dtype, id=f"{op}-{name}-{str(dtype).removeprefix('torch.')}") for op, name, dtype in chosen]


@pytest.mark.parametrize(("op", "name", "dtype"), _rows())
def test_output_and_gradients_are_within_the_tolerance_rule(op: str, name: str, dtype: torch.dtype):
    case = CASES[op, name]
    reason = testing.why_not(op, case.inputs(dtype), "triton")
    if reason is not None:
        pytest.skip(reason)
    with testing.poisoned_memory():
        verdicts = testing.judge(op, "triton", case, dtype)
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


@pytest.mark.parametrize(("op", "name"), [("class_attention", "dropout_many_heads"), ("class_attention", "channels_35"), ("pooled_attention", "dropout")])
def test_repeated_calls_agree_to_the_bit(op: str, name: str):
    inputs = CASES[op, name].inputs(torch.float32)
    with testing.poisoned_memory():
        first, second = (testing.run_case(op, inputs, "triton") for _ in range(2))
    for quantity, value in first.items():
        assert torch.equal(value, second[quantity]), quantity


@pytest.mark.parametrize(("forward", "backward"), [("triton", "reference"), ("reference", "triton")])
@pytest.mark.parametrize(("op", "name"), [("class_attention", "dropout_many_heads"), ("pooled_attention", "dropout")])
def test_what_is_saved_is_understood_by_the_other_backend(op: str, name: str, forward: str, backward: str, monkeypatch: pytest.MonkeyPatch):
    case = CASES[op, name]
    inputs = case.inputs(torch.float32)
    leaves = {key: value.requires_grad_() for key, value in testing.differentiable(inputs).items()}
    # "auto" asks for the environment's choice in each phase anew
    monkeypatch.setenv("VTKERNELS_BACKEND", forward)
    out = testing.OPS[op].public(**inputs)
    monkeypatch.setenv("VTKERNELS_BACKEND", backward)
    grads = torch.autograd.grad(out, list(leaves.values()), testing.upstream_for((out,)))
    outcome = {"output": out.detach()} | {f"gradient of {key}": grad for key, grad in zip(leaves, grads, strict=True)}
    verdicts = testing.judge_outcome(op, f"{forward} then {backward}", case, torch.float32, outcome)
    assert all(verdict.passed for verdict in verdicts), "\n".join(map(str, verdicts))


def test_probabilities_are_the_references():
    inputs = CASES["class_attention", "cait_xs24"].inputs(torch.float32)
    found, expected = (testing.OPS["class_attention"].public(**inputs, return_probs=True, backend=name)[1] for name in ("triton", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
