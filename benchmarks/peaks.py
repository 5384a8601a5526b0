"""The machine's limits, measured in the process that measures the kernels: arithmetic and copy bandwidth."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vtkernels._core import native

COPY_BYTES = 256 << 20  # far beyond any cache


@dataclass(frozen=True)
class Peaks:
    copy: float  # bytes per second, reads and writes both counted
    flops: dict[str, float]  # by dtype
    how: str  # what `flops` stands for

    def or_better(self, other: "Peaks") -> "Peaks":
        """The higher of two measurements each: a shared machine has its limits only while the neighbours rest."""
        return Peaks(max(self.copy, other.copy), {name: max(value, other.flops[name]) for name, value in self.flops.items()}, self.how)

    def as_json(self) -> dict:
        return {"copy_GBps": self.copy / 1e9, "GFLOPs": {name: value / 1e9 for name, value in self.flops.items()}, "how": self.how}


def measure(device: str) -> Peaks:
    if device == "cuda":
        flops = {"float32": _matmul(device, torch.float32), "bfloat16": _matmul(device, torch.bfloat16), "float16": _matmul(device, torch.float16)}
        return Peaks(_copy(device), flops, "the rate of a large matrix product in the same dtype")
    if native.why_missing() is not None:
        rate = _matmul(device, torch.float32)
        how = "the rate of a large fp32 matrix product, below the true peak (the native library, which measures that, is missing)"
        return Peaks(_copy(device), {"float32": rate, "bfloat16": rate, "float16": rate}, how)
    threads = torch.get_num_threads()
    fma = torch.ops.vtkernels_native.measure_peak("fp32", threads)
    # 0 where the processor has no bf16 dot product: its bf16 kernels compute with fp32 FMAs, as every fp16 kernel does
    dot = torch.ops.vtkernels_native.measure_peak("bf16", threads)
    return Peaks(
        _copy(device), {"float32": fma, "bfloat16": dot or fma, "float16": fma}, "multiply-adds from registers (bfloat16: dot products, where the CPU has them)"
    )


def _best(run: Callable[[], object], device: str, repeats: int = 7) -> float:
    """Seconds of the fastest run: a limit is what the machine can do, not what it did while disturbed."""
    timed = _on_device if device == "cuda" else _on_host
    return min(timed(run) for _ in range(repeats))


def _on_host(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _on_device(run: Callable[[], object], calls: int = 8) -> float:
    """By the device's clock, several calls in a row: the host's part in a launch is no limit of the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * start.elapsed_time(end) / calls


def _copy(device: str) -> float:
    """The better of a copy (one read, one write) and a sum (two reads, one write)."""
    size = COPY_BYTES if device == "cpu" else 4 * COPY_BYTES
    a, b, c = (torch.ones(size // 4, device=device) for _ in range(3))
    return max(2 * size / _best(lambda: c.copy_(a), device), 3 * size / _best(lambda: torch.add(a, b, out=c), device))


def _matmul(device: str, dtype: torch.dtype) -> float:
    """The best of the precision settings that keep fp32 products in fp32."""
    size = 1536 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    rates = []
    for precision in ("highest", "medium") if device == "cpu" else ("highest",):
        torch.set_float32_matmul_precision(precision)
        rates.append(2 * size**3 / _best(lambda: a @ b, device))
    torch.set_float32_matmul_precision(before)
    return max(rates)
