"""Integers that are 1 become constants of a Triton kernel's build, as a batch of one image does: the kernels are parsed with as many of them as there may be.

The interpreter knows no such constants, and the static gate builds calls of full size.
"""

import pytest
import torch

from vtkernels._core import testing

pytest.importorskip("triton", reason="what parses the kernels is triton, which is not installed")

from python_tests.gpu.waiting import pretended_device

# (op, case): one image, and as few heads, windows, tokens and tiles as the case's kernels take
SMALLEST = (
    ("window_attention", "batch_1"),
    ("window_attention", "large_heads_logits"),
    ("window_attention", "window_24"),
    ("talking_heads_attention", "smallest"),
    ("class_attention", "smallest"),
    ("pooled_attention", "smallest"),
    ("augmix_loss", "one_sample"),
)


def smallest_inputs(op, case):
    """The case's; or a call with nothing but ones, where a tile of one is a tile as any other."""
    if case != "smallest":
        return next(found for found in testing.cases(op) if found.name == case).inputs(torch.bfloat16)
    if op == "talking_heads_attention":
        mixing = {"pre_weight": torch.ones(1, 1), "pre_bias": torch.zeros(1), "post_weight": torch.ones(1, 1), "post_bias": torch.zeros(1)}
        return {"qkv": torch.zeros(1, 1, 3 * 16), **mixing, "num_heads": 1}
    if op == "class_attention":
        weights = {f"{name}_weight": torch.zeros(16, 16) for name in "qkv"}
        return {"tokens": torch.zeros(1, 1, 16), **weights, "num_heads": 1}
    return {name: torch.zeros(1, 1, 1, 16) for name in "qkv"}


@pytest.mark.parametrize(("op", "case"), SMALLEST, ids=map("/".join, SMALLEST))
def test_kernels_take_ones(op, case):
    inputs = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in smallest_inputs(op, case).items()}
    with pretended_device() as launched:
        testing.run_case(op, inputs, "triton")
    assert any(build.ones for build in launched)
    for build in launched:
        build.parse()
