"""Which backend runs a call, and why the others do not."""

from dataclasses import dataclass
from typing import Any

import torch

from vtkernels._core.op import OPS, Op


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. Print it."""

    op: str
    asked: str
    reasons: dict[str, dict[str, str | None]]  # by phase, by backend: None where it can run
    left_to_others: tuple[str, ...] = ()  # phases that the backend asked for has no kernel for, but runs the rest of

    def chosen(self, phase: str = "forward") -> str | None:
        """The backend that runs the phase; None if the one asked for cannot."""
        candidates = self.reasons[phase] if self.asked == "auto" or phase in self.left_to_others else {self.asked: self.reasons[phase][self.asked]}
        return next((name for name, reason in candidates.items() if reason is None), None)

    def __str__(self) -> str:
        lines = [f"{self.op} (backend={self.asked!r})"]
        for phase in self.reasons:
            lines.append(f"  {phase}: {self.chosen(phase) or 'refused'}")
            for name, reason in self.reasons[phase].items():
                lines.append(f"    {name:10} {'can run' if reason is None else reason}{', chosen' if name == self.chosen(phase) else ''}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend would run `vtkernels.<op>(*args, **kwargs)`, and why each of the others would not. Nothing is computed."""
    found = _find(op)
    arguments = found.arguments(*args, **kwargs)
    asked = found.default_backend() if arguments["backend"] == "auto" else arguments["backend"]
    found.check_name(asked)
    call = found.to_call(**arguments)
    left = tuple(phase for phase in found.phases if asked != "auto" and found.leaves_to_others(phase, asked, call))
    return Explanation(op, asked, {phase: found.reasons(phase, call) for phase in found.phases}, left)


def backends() -> dict[str, dict[str, str | None]]:
    """For every op and backend: None if it runs a typical call on a device of this machine, else the reason why not."""
    devices = [torch.device("cuda")] * torch.cuda.is_available() + [torch.device("cpu")]
    return {name: _on_any(op, devices) for name, op in OPS.items()}


def _on_any(op: Op, devices: list[torch.device]) -> dict[str, str | None]:
    found = [op.reasons("forward", op.to_call(**op.arguments(**op.example(device)))) for device in devices]
    return {name: None if any(reasons[name] is None for reasons in found) else found[0][name] for name in op.backend_names}


def _find(op: str) -> Op:
    if op not in OPS:
        raise ValueError(f"explain: op must be one of {', '.join(OPS)}, got {op!r}")
    return OPS[op]
