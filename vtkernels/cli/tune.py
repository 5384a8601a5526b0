"""`vtkernels tune`: how the Triton kernels are best launched on this GPU."""

import sys
import time

import torch

from vtkernels._core import tune


def measure(ops: list[str], minutes: float) -> int:
    if not torch.cuda.is_available():
        print("vtkernels tune: expected a CUDA device, this torch sees none; without one, launch parameters stay the careful ones", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    until = time.monotonic() + 60 * minutes
    paths = [path for op in ops for path in tune.save(device, tune.tune(op, device, tune.cuda_timer, until=until))]
    for path in dict.fromkeys(paths):
        print(f"written: {path}")
    return 0 if paths else 1
