"""What of a call decides how the kernels are best launched, and the ways worth measuring."""

from typing import NamedTuple

from vtkernels._core import tuned
from vtkernels.ops.talking_heads_attention.common import Call


class Plan(NamedTuple):
    """How the kernels are launched."""

    # of a tile
    columns: int
    num_warps: int


def tuned_plan(phase: str, call: Call, plan: Plan) -> Plan:
    """What was measured on the call's device, or the plan as it is."""
    variant = {"bits": str(8 * call.qkv.dtype.itemsize), "heads": str(call.num_heads), "head_dim": str(call.head_dim)}
    key = variant | {"images": call.qkv.shape[0], "tokens": call.tokens}
    return tuned.lookup("talking_heads_attention", phase, key, plan, _candidates, call.qkv.device)


def _candidates(plan: Plan) -> list[Plan]:
    return [Plan(columns, warps) for columns, warps in ((16, 2), (16, 4), (32, 2), (32, 8), (64, 4), (64, 8))]
