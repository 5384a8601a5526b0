"""The CUDA backward of window attention, emulated on the CPU, under the op's contract; and when it is chosen."""

import dataclasses
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import vtkernels as vt
from python_tests.gpu.emulated import compile_emulation, native_ops
from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import Case
from vtkernels.ops.window_attention import cuda

OP = "window_attention"
CASES = {case.name: case for case in testing.cases(OP)}
LARGE = [case for name, case in CASES.items() if name.startswith("large_heads") or name == "swin_12x12_shifted"]
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"


def contract_rows() -> list:
    rows = []
    for case in LARGE:
        # which the kernel tells apart where it rounds, whatever the window
        both = ("large_heads_ragged_torchvision", *(("large_heads_logits", "large_heads_biases", "large_heads_no_table") if FULL else ()))
        dtypes = (torch.bfloat16, torch.float16) if case.name in both else (torch.bfloat16,)
        rows += [pytest.param(case, dtype, id=f"{case.name}-{str(dtype).removeprefix('torch.')}") for dtype in dtypes]
    return rows


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    with native_ops(OP, compile_emulation(OP, tmp_path_factory.mktemp("emulated"))) as ops:
        yield ops


@pytest.fixture
def on_the_cpu(emulated, monkeypatch: pytest.MonkeyPatch):
    """The backend takes CPU tensors; the other backends keep their native ops."""

    def backward(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops, "vtkernels_native", emulated, raising=False)
            return cuda.backward(*arguments)

    backend = dataclasses.replace(cuda.BACKEND, why_not=cuda.why_not_call, phases={"backward": backward})
    monkeypatch.setitem(OPS[OP]._loaded, "cuda", backend)
    # several blocks a head, and windows that they do not share evenly
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 7)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("case", "dtype"), contract_rows())
def test_gradients_are_within_the_tolerance_rule(case: Case, dtype: torch.dtype):
    assert testing.why_not(OP, case.inputs(dtype), "cuda") is None
    with testing.poisoned_memory():
        verdicts = testing.judge(OP, "cuda", case, dtype)
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


@pytest.mark.usefixtures("on_the_cpu")
def test_repeated_calls_agree_to_the_bit():
    inputs = CASES["large_heads_ragged_torchvision"].inputs(torch.bfloat16)
    with testing.poisoned_memory():
        first, second = (testing.run_case(OP, inputs, "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", ["large_heads_ragged_timm", "large_heads_5x13", "large_heads_no_table", "large_heads_slice"])
def test_metadata_is_what_the_fake_promises(name: str):
    inputs = CASES[name].inputs(torch.float16)
    real = testing.run_case(OP, inputs, "cuda")
    with FakeTensorMode() as mode:
        fake = testing.run_case(OP, tree_map_only(torch.Tensor, mode.from_tensor, inputs), "cuda")
    for key, value in real.items():
        assert (value.shape, value.dtype, value.stride()) == (fake[key].shape, fake[key].dtype, fake[key].stride()), key


@pytest.mark.usefixtures("on_the_cpu")
def test_nan_reaches_the_gradients_of_its_window_alone():
    inputs = CASES["large_heads_unshifted"].inputs(torch.bfloat16)
    inputs["qkv"][0, 3, 5, 7] = torch.nan
    grad = testing.run_case(OP, inputs, "cuda")["gradient of qkv"]
    assert grad[0, :, :12].isnan().any() and not grad[0, :, 12:].isnan().any() and not grad[1].isnan().any()


@pytest.mark.usefixtures("on_the_cpu")
def test_an_empty_batch_has_empty_gradients():
    inputs = CASES["large_heads_masked"].inputs(torch.bfloat16)
    found = testing.run_case(OP, inputs | {"qkv": inputs["qkv"][:0]}, "cuda")
    assert found["gradient of qkv"].shape == (0, 10, 13, 192)
    assert not found["gradient of bias_table"].any() and not found["gradient of qkv_bias"].any()


@pytest.mark.usefixtures("on_the_cpu")
def test_asked_for_it_computes_the_backward_and_leaves_the_forward_to_others():
    inputs = CASES["swin_12x12_shifted"].inputs(torch.bfloat16)
    found = vt.explain(OP, **inputs, backend="cuda")
    assert found.chosen("backward") == "cuda"
    assert found.chosen("forward") == vt.explain(OP, **inputs).chosen("forward") != "cuda"
    assert found.reasons["forward"]["cuda"] == "it computes the backward only"
    assert torch.equal(vt.window_attention(**inputs, backend="cuda"), vt.window_attention(**inputs))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    ("name", "dtype", "reason"),
    [
        ("swin_7x7", torch.bfloat16, "its windows hold 65 to 144 tokens, this call's 49"),
        ("window_14", torch.bfloat16, "its windows hold 65 to 144 tokens, this call's 196"),
        ("swin_12x12_shifted", torch.float32, "it computes in bfloat16 and float16"),
        ("window_12x8", torch.bfloat16, "its head dimension is 32, this call's is 8"),
        ("dropout_large_window", torch.bfloat16, "its head dimension is 32"),
    ],
)
def test_what_it_has_no_kernel_for_is_refused_before_the_forward_runs(name: str, dtype: torch.dtype, reason: str):
    inputs = CASES[name].inputs(dtype)
    assert vt.explain(OP, **inputs, backend="cuda").chosen("forward") is None
    with pytest.raises(RuntimeError, match=f"backend 'cuda' was asked for but cannot run this call: {reason}"):
        vt.window_attention(**inputs, backend="cuda")


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("extra", ["bias", "logit_scale", "dropout_p"])
def test_variants_are_refused(extra: str):
    inputs = CASES["swin_12x12_shifted"].inputs(torch.bfloat16)
    values = {"bias": {"bias": torch.zeros(2, 144, 144), "bias_table": None}, "logit_scale": {"logit_scale": torch.ones(2)}, "dropout_p": {"dropout_p": 0.1}}
    with pytest.raises(RuntimeError, match="it takes no|it has no"):
        vt.window_attention(**inputs | values[extra], backend="cuda")


def test_without_a_gpu_it_says_so():
    inputs = CASES["swin_12x12_shifted"].inputs(torch.bfloat16)
    with pytest.raises(RuntimeError, match="it runs on CUDA devices, qkv is on cpu"):
        vt.window_attention(**inputs, backend="cuda")
