"""Where the Triton backend says no, why, and that finding out costs nothing."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vtkernels._core import gpu
from vtkernels.ops.window_attention import triton as backend
from vtkernels.ops.window_attention.common import Call


def _call(dtype: torch.dtype = torch.float16, device: str = "cuda", window: int = 7, head_dim: int = 32) -> Call:
    with FakeTensorMode():
        qkv = torch.empty(2, 14, 14, 3 * 2 * head_dim, dtype=dtype, device=device)
    return Call(qkv, None, None, None, None, 2, (window, window), (0, 0), 1.0, False, False, 0.0, 0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):
    """A pretended H100, whose capability and shared memory a test may change."""
    facts = {"capability": (9, 0), "shared": 232448}
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(gpu, "capability", lambda _: facts["capability"])
    monkeypatch.setattr(backend, "_shared_memory_limit", lambda _: facts["shared"])
    monkeypatch.setattr(gpu, "why_no_triton", lambda: facts.get("import"))
    return facts


@pytest.mark.parametrize(
    ("facts", "call", "reason"),
    [
        ({}, {"device": "cpu"}, "it runs on CUDA devices, qkv is on cpu"),
        ({}, {"dtype": torch.float64}, "float32, bfloat16 and float16"),
        ({}, {"window": 25}, "at most 24 x 24, this call's is 25 x 25"),
        ({}, {"head_dim": 264}, "at most 256, this call's is 264"),
        ({"capability": (7, 0)}, {}, "needs compute capability 7.5"),
        ({"capability": (7, 5)}, {"dtype": torch.bfloat16}, "bfloat16 needs compute capability 8.0"),
        ({"shared": 65536}, {"head_dim": 256}, "shared memory in the backward"),
        ({"import": "triton cannot be imported"}, {}, "triton cannot be imported"),
    ],
)
def test_a_refusal_names_its_reason(device: dict, facts: dict, call: dict, reason: str):
    device.update(facts)
    assert reason in backend.why_not("backward", _call(**call))


@pytest.mark.parametrize("call", [{}, {"dtype": torch.bfloat16}, {"dtype": torch.float32, "window": 24}, {"head_dim": 256}])
def test_what_fits_is_accepted(device: dict, call: dict):
    assert backend.why_not("forward", _call(**call)) is None
    assert backend.why_not("backward", _call(**call)) is None


def test_refusing_a_cpu_tensor_imports_no_triton():
    code = (
        "import sys, torch, vtkernels\n"
        "vtkernels.window_attention(torch.zeros(1, 4, 4, 48), num_heads=1, window_size=4)\n"
        "assert 'triton' not in sys.modules, 'triton was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
