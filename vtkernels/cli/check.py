"""`vtkernels check`: every backend that runs here is held to its op's contract."""

import torch

import vtkernels
from vtkernels._core import testing


def check(ops: list[str]) -> int:
    """Every case of the op, with all that comes out of it, against the float64 reference. The reference is the judge, so it is not judged."""
    failures = 0
    for op in ops:
        for backend, reason in vtkernels.backends()[op].items():
            if backend == "reference":
                continue
            if reason is not None:
                print(f"{op} {backend}: cannot run here: {reason}")
                continue
            for device in ("cuda", "cpu"):
                if device == "cpu" or torch.cuda.is_available():
                    failures += _check_backend(op, backend, device)
    return int(failures > 0)


def _check_backend(op: str, backend: str, device: str) -> int:
    """Print what came out in a line, and each failure in another; return the number of failures."""
    verdicts, passed_over = [], 0
    for case in testing.cases(op):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if testing.why_not(op, case.inputs(dtype, device), backend):
                passed_over += 1
                continue
            with testing.poisoned_memory():
                verdicts += testing.judge(op, backend, case, dtype, device)
    if not verdicts:
        return 0
    failed = [verdict for verdict in verdicts if not verdict.passed]
    worst = max(verdicts, key=lambda verdict: verdict.share)
    judged = "outputs and gradients" if testing.has_gradients(op) else "results"
    print(
        f"{op} {backend} on {device}: {len(verdicts) - len(failed)} of {len(verdicts)} {judged} within the error budget, "
        f"the closest at {worst.share:.0%} ({worst.case}, {worst.quantity}); {passed_over} runs are not for this backend"
    )
    for verdict in failed:
        print(f"  FAILED {verdict}")
    return len(failed)
