"""What of a call decides how the kernels are best launched, and the ways worth measuring."""

from collections.abc import Callable
from typing import Any

from vtkernels._core import tuned
from vtkernels.ops.window_attention.common import LARGEST_TILE, Call


def tuned_plan(phase: str, call: Call, choose: Callable[[str, Call], Any]) -> Any:
    """What was measured on the call's device, or the launcher's own choice."""
    batch, channels = call.qkv.shape[0], call.channels
    key = {
        "bits": str(8 * call.qkv.dtype.itemsize),
        "window": f"{call.window[0]}x{call.window[1]}",
        "head_dim": str(call.head_dim),
        "bias": "none" if call.bias_table is None and call.bias is None else "dense" if call.bias_table is None else "table",
        "variant": " ".join(name for name, there in _variants(call) if there),
        "images": batch,
        "windows": call.grid[0] * call.grid[1],
        "channels": channels,
    }
    return tuned.lookup("window_attention", phase, key, choose(phase, call), _small if call.tokens <= LARGEST_TILE else _large, call.qkv.device)


def _variants(call: Call) -> tuple[tuple[str, bool], ...]:
    return ("cosine", call.logit_scale is not None), ("dropout", call.dropout_p > 0), ("padded", call.padded)


def _small(plan: Any) -> list[Any]:
    """More or fewer windows for each program, other depths of the pipeline, and fewer registers for more resident programs."""
    share = [plan._replace(programs=programs) for programs in (plan.programs // 2, plan.programs * 3 // 2, 2 * plan.programs, 4 * plan.programs)]
    stages = [plan._replace(num_stages=stages) for stages in (1, 2, 3)]
    # what 3, 4, 5 and 6 resident programs of four warps may have
    programs = (plan.programs, plan.programs * 3 // 2)
    bounded = [plan._replace(maxnreg=maxnreg, programs=count) for maxnreg in (168, 128, 96, 80, None) for count in programs]
    return [*share, *stages, *bounded]


def _large(plan: Any) -> list[Any]:
    warps = [plan._replace(num_warps=warps, maxnreg=None) for warps in (4, 8)]
    return [*warps, plan._replace(num_stages=2), plan._replace(maxnreg=168), plan._replace(programs=2 * plan.programs)]
