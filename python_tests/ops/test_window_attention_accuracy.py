"""What window attention may lose and may take: errors beside the eager path's, memory, every instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles import eager_swin

import vtkernels as vt
from vtkernels._core import testing
from vtkernels._core.env import ISA_NAMES
from vtkernels.ops.window_attention.op import OP

ROOT = Path(__file__).parents[2]
ALLOWED = 1.5  # times the error of the eager path
KERNELS = [name for name in OP.backend_names if name != "reference"]


def random_table(kind: str, *shape: int) -> torch.Tensor:
    noise = torch.randn(shape)
    if kind.startswith("+-"):
        return float(kind[2:]) * torch.randn(shape).sign() + noise
    return float(kind) + 0.5 * noise


@pytest.mark.parametrize("window", [7, 8, 12])
@pytest.mark.parametrize(
    ("gain", "table"), [(1, "0"), (20, "0"), (1, "+-150"), (1, "+-200"), (1, "+200"), (1, "-200"), (1, "-300")],
    ids=["plain", "logits_in_the_thousands", "mixed_150", "mixed_200", "plus_200", "minus_200", "minus_300"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", KERNELS)
def test_error_is_at_most_one_and_a_half_times_the_eager_paths(backend, dtype, gain, table, window):
    """Euclidean errors over several draws: the largest deviation of a single draw says more about the draw than about the kernel."""
    if vt.backends()[OP.name][backend] is not None:
        pytest.skip(f"{backend}: {vt.backends()[OP.name][backend]}")
    device = "cpu" if backend == "cpu" else "cuda"
    heads, options = 3, {"num_heads": 3, "window_size": window, "shift_size": window // 2}
    squares = {"kernel": torch.zeros(3, dtype=torch.float64), "eager": torch.zeros(3, dtype=torch.float64)}
    for draw in range(6):
        torch.manual_seed(draw)
        qkv = (gain * torch.randn(2, 2 * window, 2 * window, 3 * 32 * heads)).to(device, dtype)
        bias_table = random_table(table, (2 * window - 1) ** 2, heads).to(device)
        upstream = torch.randn(2, 2 * window, 2 * window, 32 * heads).to(device, dtype)

        def run(function, dtype, qkv=qkv, bias_table=bias_table, upstream=upstream):
            leaves = qkv.to(dtype).requires_grad_(), bias_table.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
            out = function(*leaves)
            return [value.detach().double() for value in (out, *torch.autograd.grad(out, leaves, upstream.to(dtype)))]

        truth = run(lambda q, t: eager_swin(q, t, **options), torch.float64)
        eager = run(lambda q, t: eager_swin(q, t, **options), dtype)
        kernel = run(lambda q, t: OP.public(q, t, **options, backend=backend), dtype)
        for i, exact in enumerate(truth):
            squares["eager"][i] += (eager[i] - exact).square().sum().cpu()
            squares["kernel"][i] += (kernel[i] - exact).square().sum().cpu()
    ratios = (squares["kernel"] / squares["eager"]).sqrt().tolist()
    for quantity, ratio in zip(("output", "gradient of qkv", "gradient of bias_table"), ratios, strict=True):
        assert ratio <= ALLOWED, f"{quantity}: {ratio:.2f} times the eager path's error"


def run_python(program: str, **environment: str) -> str:
    """Run a program in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


MEASURE_MEMORY = """
import re, torch, vtkernels as vt
backend, size, window, heads, batch, dtype = {backend!r}, {size}, {window}, {heads}, {batch}, {dtype}

def resident(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

def inputs(batch, size):
    qkv = torch.randn(batch, size, size, 96 * heads).to(dtype).requires_grad_()
    table = torch.randn((2 * window - 1) ** 2, heads).requires_grad_()
    return qkv, table, torch.randn(batch, size, size, 32 * heads).to(dtype)

def step(qkv, table, upstream):
    out = vt.window_attention(qkv, table, num_heads=heads, window_size=window, shift_size=window // 2, backend=backend)
    return torch.autograd.grad(out, (qkv, table), upstream)

# threads, libraries and autograd are set up before the measurement
step(*inputs(1, 2 * window))
tensors = inputs(batch, size)
open("/proc/self/clear_refs", "w").write("5")  # the peak is now what is resident
before = resident("VmRSS")
gradients = step(*tensors)
print(resident("VmHWM") - before)
"""


def peak_of_a_training_step(**parameters) -> int:
    # blocks beyond 64 KB go back to the system when they are freed: memory from an earlier call cannot serve unseen
    return int(run_python(MEASURE_MEMORY.format(**parameters), MALLOC_MMAP_THRESHOLD_="65536"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "window", "heads", "batch"), [(56, 7, 3, 16), (96, 12, 4, 6)])
def test_a_training_step_takes_little_more_than_its_results(size, window, heads, batch, dtype):
    """Peak of resident memory above the inputs: tensors, scratch of the kernels, everything."""
    reason = vt.backends()[OP.name]["cpu"]
    if reason is not None:
        pytest.skip(f"cpu: {reason}")
    tokens = batch * size * size
    saved = 2 * 4 * tokens * heads  # two fp32 numbers a row and head
    results = 4 * 32 * heads * tokens * dtype.itemsize + saved  # output and the gradient of qkv
    shape = {"size": size, "window": window, "heads": heads, "batch": batch, "dtype": dtype}
    peak = peak_of_a_training_step(backend="cpu", **shape)
    assert 0.5 * results < peak < 1.3 * results, f"{peak / 2**20:.0f} MiB beside results of {results / 2**20:.0f} MiB"
    # the measurement must see what is there: the reference makes windows and scores
    assert peak_of_a_training_step(backend="reference", **shape | {"batch": 1}) > 3 * results / batch


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("level", [0.0, 40.0, 64.0, 1000.0])
def test_small_gradients_survive_beside_large_scores(backend, level):
    """A bias of the same size everywhere changes nothing, and a power of two in the upstream gradient only scales the gradients."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(1, 14, 14, 96, generator=generator)
    inputs = {"qkv": qkv, "bias_table": torch.full((169, 1), level), "num_heads": 1, "window_size": 7}
    if (reason := testing.why_not(OP.name, inputs, backend)) is not None:
        pytest.skip(f"{backend}: {reason}")
    upstream = torch.randn(1, 14, 14, 32, generator=generator)
    plain, scaled = (gradients(inputs, upstream * scale, backend) for scale in (1.0, 2.0**-40))
    for name in plain:
        assert torch.equal(plain[name] * 2.0**-40, scaled[name]), name


def gradients(inputs, upstream, backend):
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("qkv", "bias_table")}
    vt.window_attention(**inputs | leaves, backend=backend).backward(upstream)
    return {name: leaf.grad for name, leaf in leaves.items()}


JUDGE_ON_ISA = """
import torch
from vtkernels._core import native, testing
print(native.isa())
for case in testing.cases("window_attention"):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if testing.why_not("window_attention", case.inputs(dtype), "cpu") is None:
            for verdict in testing.judge("window_attention", "cpu", case, dtype):
                if not verdict.passed:
                    print(verdict)
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISA_NAMES)
def test_every_instruction_set_is_within_the_tolerance_rule(isa):
    reason = vt.backends()[OP.name]["cpu"]
    if reason is not None:
        pytest.skip(f"cpu: {reason}")
    found, *failures = run_python(JUDGE_ON_ISA, VTKERNELS_ISA=isa).splitlines()
    if found != isa:
        pytest.skip(f"this machine's best below {isa} is {found}")
    assert not failures, "\n".join(failures)
