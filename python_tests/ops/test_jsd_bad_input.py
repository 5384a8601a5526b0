"""What jsd_consistency and augmix_loss refuse, and in which words; and where their Triton backend says no."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import vtkernels as vt
from vtkernels._core import gpu, native
from vtkernels.ops.jsd import triton
from vtkernels.ops.jsd.common import Call

F64 = torch.float64
CPU = ["reference"] + ["cpu"] * (native.why_missing() is None)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize(("wrong", "index"), [(10, 4), (-1, 0), (-100, 7), (2**40, 8)])
def test_a_target_that_names_no_class_is_refused(backend, wrong, index):
    logits, target = torch.randn(27, 10), torch.randint(10, (9,))
    target[index] = wrong
    message = rf"augmix_loss: target\[{index}\] must lie between 0 and 9, got {wrong}; "
    for leaf in (logits, logits.requires_grad_()):
        with pytest.raises(ValueError, match=message):
            vt.augmix_loss(leaf, target, backend=backend)
    assert logits.grad is None


BAD_CONSISTENCY = [
    ({"logits": [1.0]}, TypeError, r"logits must be a tensor \[views \* batch, classes\], got list"),
    ({"logits": torch.zeros(2, 3, 10)}, ValueError, r"logits must have 2 dimensions \[views \* batch, classes\], got \[2, 3, 10\]"),
    ({"logits": torch.zeros(6, 10, dtype=torch.int64)}, TypeError, r"logits must have dtype float16.*got torch.int64; try logits.float\(\)"),
    ({"logits": torch.zeros(7, 10)}, ValueError, r"the rows of logits must be a multiple of num_views=3, got 7; try torch.cat"),
    ({"logits": torch.zeros(6, 0)}, ValueError, r"logits must have at least one class, got \[6, 0\]"),
    ({"num_views": 1}, ValueError, r"num_views must be an int of at least 2, got 1; with one view there is nothing"),
    ({"num_views": 0}, ValueError, r"num_views must be an int of at least 2, got 0"),
    ({"num_views": 3.0}, ValueError, r"num_views must be an int of at least 2, got 3.0"),
    ({"num_views": True}, ValueError, r"num_views must be an int of at least 2, got True"),
    ({"reduction": "mean"}, ValueError, r"reduction must be one of batchmean, sum, none, got 'mean'"),
    ({"weights": (0.5, 0.5)}, ValueError, r"weights must have one number for each of 3 views, got 2"),
    ({"weights": (0.5, 0.5, 0.5)}, ValueError, r"weights must not be negative and sum to 1, got .*; divide them by their sum"),
    ({"weights": (1.5, -0.5, 0.0)}, ValueError, r"weights must not be negative and sum to 1"),
    ({"weights": (math.nan, 0.5, 0.5)}, ValueError, r"weights must not be negative and sum to 1"),
    ({"weights": torch.ones(3) / 3}, TypeError, r"weights must be a sequence of floats, got Tensor; of a tensor: weights.tolist\(\)"),
    ({"weights": 1.0}, TypeError, r"weights must be a sequence of floats, got float"),
]
BAD_AUGMIX = [
    ({"target": [0, 1]}, TypeError, r"target must be a tensor, got list"),
    ({"target": torch.zeros(6, dtype=torch.int64)}, ValueError, r"target must have shape \[2\], got \[6\]; targets of the clean view only: try target\[:2\]"),
    ({"target": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, r"target must have shape \[2\], got \[2, 1\]; one class for each sample"),
    ({"target": torch.zeros(2, dtype=torch.int32)}, TypeError, r"target must have dtype int64 .*got torch.int32; try target.long\(\)"),
    ({"target": torch.zeros(2, dtype=torch.bool)}, TypeError, r"target must have dtype int64 .*got torch.bool"),
    ({"target": torch.zeros(2)}, ValueError, r"target must have shape \[2, 10\], got \[2\]; .*classes must be int64"),
    ({"target": torch.zeros(2, 9)}, ValueError, r"target must have shape \[2, 10\], got \[2, 9\]"),
    ({"target": torch.zeros(2, 10, dtype=F64)}, TypeError, r"target must have dtype torch.float32 beside logits of torch.float32, got torch.float64"),
    ({"target": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, r"target must be on the device of logits \(cpu\), got meta"),
    ({"weight": -1.0}, ValueError, r"weight must be a finite number, not negative, got -1.0; AugMix uses 12"),
    ({"weight": math.inf}, ValueError, r"weight must be a finite number"),
    ({"weight": "12"}, ValueError, r"weight must be a finite number, not negative, got '12'"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
    ({"label_smoothing": None}, ValueError, r"label_smoothing must lie in \[0, 1\], got None"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CONSISTENCY, ids=[str(number) for number in range(len(BAD_CONSISTENCY))])
def test_bad_input_is_refused(change, error, message):
    with pytest.raises(error, match=f"jsd_consistency: {message}"):
        vt.jsd_consistency(**({"logits": torch.zeros(6, 10)} | change))
    if set(change) <= {"logits", "num_views"}:
        with pytest.raises(error, match=f"augmix_loss: {message}"):
            vt.augmix_loss(**({"logits": torch.zeros(6, 10), "target": torch.zeros(2, dtype=torch.int64)} | change))


@pytest.mark.parametrize(("change", "error", "message"), BAD_AUGMIX, ids=[str(number) for number in range(len(BAD_AUGMIX))])
def test_bad_input_of_the_whole_loss_is_refused(change, error, message):
    with pytest.raises(error, match=f"augmix_loss: {message}"):
        vt.augmix_loss(**({"logits": torch.zeros(6, 10), "target": torch.zeros(2, dtype=torch.int64)} | change))


def test_arguments_that_pass_once_are_checked_again_when_they_change():
    """Calls like earlier ones are not checked anew: what makes a call another must be known."""
    logits, target = torch.zeros(6, 10), torch.zeros(2, dtype=torch.int64)
    vt.augmix_loss(logits, target)
    vt.jsd_consistency(logits, weights=[0.5, 0.25, 0.25])
    for change in ({"num_views": 3.0}, {"label_smoothing": 2.0}, {"weight": -12.0}, {"backend": "fast"}):
        with pytest.raises(ValueError):
            vt.augmix_loss(logits, target, **change)
    with pytest.raises(ValueError):
        vt.augmix_loss(logits, target[:1])
    with pytest.raises(TypeError):
        vt.augmix_loss(logits, target.int())
    with pytest.raises(ValueError):
        vt.jsd_consistency(logits, weights=[0.5, 0.25, 0.5])
    with pytest.raises(ValueError, match="num_views must be an int"):
        vt.jsd_consistency(logits, num_views=[3])


@pytest.mark.parametrize(
    ("facts", "call", "reason"),
    [
        ({}, {"device": "cpu"}, "it runs on CUDA devices, logits are on cpu"),
        ({}, {"dtype": F64}, "float32, bfloat16 and float16"),
        ({}, {"views": 9}, "at most 8 views, this call has 9"),
        ({"capability": (7, 0)}, {}, "needs compute capability 7.5"),
        ({"capability": (7, 5)}, {"dtype": torch.bfloat16}, "bfloat16 needs compute capability 8.0"),
        ({"import": "triton cannot be imported"}, {}, "triton cannot be imported"),
        ({}, {}, None),
        ({"capability": (7, 5)}, {"dtype": torch.float16, "views": 8}, None),
    ],
)
def test_triton_says_why_not(facts, call, reason, monkeypatch):
    """On a pretended H100, whose capability a row may change."""
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "capability", lambda _: facts.get("capability", (9, 0)))
    monkeypatch.setattr(gpu, "why_no_triton", lambda: facts.get("import"))
    views = call.get("views", 3)
    with FakeTensorMode():
        logits = torch.empty(views * 2, 10, dtype=call.get("dtype", torch.float32), device=call.get("device", "cuda"))
    found = triton.why_not("forward", Call(logits, None, views, (1 / views,) * views, 1.0, 0.0, "batchmean"))
    assert found is None if reason is None else reason in found
