"""How an op is judged: its cases, the tolerance rule, poisoned memory. Shared by the tests, `vtkernels check` and the benchmarks.

Truth is the reference in float64; the yardstick is the reference in the dtype under test. A kernel may err by what the
yardstick errs, times a factor, and not by more. What the yardstick errs is the largest over several draws of the case: a
gradient of two numbers, each a sum that cancels, comes out all but exact by luck every now and then, and luck is no rule.
"""

import contextlib
import copy
import functools
import importlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels._core.explain import explain
from vtkernels._core.op import OPS

# A kernel sums in another order than the yardstick; a gradient is a longer chain of such sums.
FORWARD_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
YARDSTICK_DRAWS = 4

Inputs = dict[str, Any]
Outcome = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One row of an op's contract: `make(dtype, device, generator)` returns the keyword arguments of the public function.

    The generator lives on the CPU, so that a case has the same numbers on every device.
    """

    name: str
    why: str
    make: Callable[[torch.dtype, torch.device | str, torch.Generator], Inputs] = field(repr=False)
    # small and ordinary: what tracing, export and other slow machinery is tested with
    representative: bool = False
    # arguments that have one dtype whatever is asked for, such as counters and flags
    fixed: tuple[str, ...] = ()

    def inputs(self, dtype: torch.dtype, device: torch.device | str = "cpu", draw: int = 0) -> Inputs:
        return self.make(dtype, device, generator_for(f"{self.name} {draw}" if draw else self.name))


@dataclass(frozen=True)
class BenchCase(Case):
    """A case worth timing, with what it must move and compute; phases are "forward" and "backward"."""

    model: str = ""
    # elements read and written once each, and multiplications plus additions; both by phase
    elements: dict[str, int] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)

    def bytes(self, phase: str, dtype: torch.dtype) -> int:
        return self.elements[phase] * dtype.itemsize


def generator_for(name: str) -> torch.Generator:
    """A CPU generator that is the same for a name in every process."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def cases(op: str) -> list[Case]:
    return cases_module(op).cases(op)


def gpu_cases(op: str) -> list[BenchCase]:
    """What GPUs are tuned and timed with; none where an op has no kernels for them."""
    return cases_module(op).gpu_cases(op) if "triton" in OPS[op].backend_names else []


def cases_module(op: str) -> ModuleType:
    return importlib.import_module(f"{OPS[op].package}.cases")


def in_dtype(inputs: Inputs, dtype: torch.dtype, fixed: tuple[str, ...] = ()) -> Inputs:
    """The same values (rounded already, if they are) in another floating dtype; lists of tensors too, but not the `fixed` arguments."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(one) for one in value]
        return value.to(dtype) if _is_floating(value) else value

    return {name: value if name in fixed else convert(value) for name, value in inputs.items()}


def tensors_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor by its name, those of lists as "params[0]"."""
    found = {}
    for name, value in arguments.items():
        named = {f"{name}[{i}]": one for i, one in enumerate(value)} if isinstance(value, (list, tuple)) else {name: value}
        found |= {key: one for key, one in named.items() if isinstance(one, Tensor)}
    return found


def mutated(op: str, inputs: Inputs) -> dict[str, Tensor]:
    """The tensors that an in-place op writes to, by name."""
    return tensors_of({name: inputs.get(name) for name in OPS[op].mutates})


def differentiable(inputs: Inputs) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if _is_floating(value)}


def why_not(op: str, inputs: Inputs, backend: str) -> str | None:
    """Why a backend cannot run all phases of the op that it has for these inputs; None if it can."""
    found = explain(op, **inputs, backend=backend)
    return next((reasons[backend] for phase, reasons in found.reasons.items() if found.chosen(phase) is None), None)


def call_of(op: str, inputs: Inputs) -> Any:
    """The call a backend would get for these inputs."""
    return OPS[op].to_call(**OPS[op].arguments(**inputs))


def run_case(op: str, inputs: Inputs, backend: str, upstream: tuple[Tensor, ...] | None = None) -> Outcome:
    """What the public function makes of the inputs, which are left alone.

    Of a differentiable op: outputs and the gradients of all floating inputs. `upstream` are the gradients of the outputs that have
    any; without them, `upstream_for(outputs)`. Of another: what it returns, and every tensor it writes to.
    """
    if not has_gradients(op):
        # one copy of everything: strides, offsets, and which tensors share a buffer stay as they are
        return run_in_place(op, copy.deepcopy(inputs), backend)
    leaves = {name: value.detach().requires_grad_() for name, value in differentiable(inputs).items()}
    outputs = outputs_of(OPS[op].public(**{**inputs, **leaves}, backend=backend))
    smooth = tuple(output for output in outputs.values() if output.requires_grad)
    grads = torch.autograd.grad(smooth, list(leaves.values()), upstream_for(smooth) if upstream is None else upstream)
    found = {name: output.detach() for name, output in outputs.items()}
    return found | {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def outputs_of(result: Tensor | tuple[Tensor, ...]) -> Outcome:
    """What an op returned, by name: the first output, which has the gradients, and whatever comes with it."""
    if isinstance(result, Tensor):
        return {"output": result}
    return {f"output {i}" if i else "output": output for i, output in enumerate(result)}


def has_gradients(op: str) -> bool:
    return "backward" in OPS[op].phases


def run_in_place(op: str, inputs: Inputs, backend: str) -> Outcome:
    """`run_case` for an op without gradients, on the inputs themselves."""
    result = OPS[op].public(**inputs, backend=backend)
    return tensors_of({"output": result}) | mutated(op, inputs)


def upstream_for(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of the outputs to differentiate with: exact in every dtype, so that each precision sees the same ones."""
    grads = []
    for output in outputs:
        # multiples of 1/8 in [-2, 2], in an order without a short period
        steps = torch.arange(output.numel(), dtype=torch.int64, device=output.device) * 2654435761 % 4294967296 % 33
        grads.append(((steps - 16).to(output.dtype) / 8).view(output.shape))
    return tuple(grads)


@dataclass(frozen=True)
class Verdict:
    """One quantity of one case against the tolerance rule."""

    op: str
    backend: str
    case: str
    quantity: str
    dtype: torch.dtype
    error: float
    yardstick_error: float
    budget: float
    worst: tuple[int, ...]

    @property
    def passed(self) -> bool:
        # written so that a NaN on either side fails
        return self.error <= self.budget

    @property
    def share(self) -> float:
        """Of the budget that is used up; an empty tensor has no budget and needs none."""
        return self.error / self.budget if self.budget else 0.0

    def __str__(self) -> str:
        return (
            f"{self.op}, backend {self.backend}, case {self.case}, {str(self.dtype).removeprefix('torch.')}: {self.quantity} is off by {self.error:.3g} "
            f"at {list(self.worst)}; the reference in this dtype is off by {self.yardstick_error:.3g}, which allows {self.budget:.3g}"
        )


class Standard(NamedTuple):
    """What a case is held to: the exact outcome, and by how much each of its tensors may be missed."""

    truth: Outcome
    yardstick_errors: dict[str, float]
    budgets: dict[str, float]


@functools.lru_cache(maxsize=256)
def standard(op: str, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu") -> Standard:
    errors: dict[str, float] = {}
    for draw in reversed(range(YARDSTICK_DRAWS)):
        inputs = case.inputs(dtype, device, draw)
        yardstick = run_case(op, inputs, "reference")
        truth = run_case(op, in_dtype(inputs, torch.float64, case.fixed), "reference")
        for name, exact in truth.items():
            if not exact.isfinite().all() or not yardstick[name].isfinite().all():
                raise ValueError(f"{op}, case {case.name}: the reference's {name} is not finite in {dtype}: it cannot judge; choose other inputs")
            errors[name] = max(errors.get(name, 0.0), _largest(yardstick[name].double() - exact))
    # the last draw is the first: the one kernels are run on
    budgets = {}
    for name, exact in truth.items():
        factor = GRADIENT_FACTOR if name.startswith("gradient") else FORWARD_FACTOR
        budgets[name] = factor * (errors[name] + _resolution(op, yardstick[name], dtype) * _largest(exact))
    return Standard(truth, errors, budgets)


def _resolution(op: str, found: Tensor, dtype: torch.dtype) -> float:
    """What the tolerance rule calls eps.

    Lists mix dtypes, and each of their tensors is held to its own; but a float64 sum over narrower numbers to float32's.
    """
    if has_gradients(op):
        return torch.finfo(dtype).eps
    summed = found.dtype == torch.float64 and dtype != torch.float64
    return torch.finfo(torch.float32 if summed else found.dtype).eps


def judge(op: str, backend: str, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Verdict]:
    """Run a case and hold all that comes out of it to the tolerance rule."""
    return judge_outcome(op, backend, case, dtype, run_case(op, case.inputs(dtype, device), backend), device)


def judge_outcome(op: str, backend: str, case: Case, dtype: torch.dtype, outcome: Outcome, device: torch.device | str = "cpu") -> list[Verdict]:
    """Hold what `run_case` found, however it was found, to the tolerance rule."""
    truth, yardstick_errors, budgets = standard(op, case, dtype, device)
    verdicts = []
    for name, exact in truth.items():
        # a NaN must be found, and named
        difference = (outcome[name].double() - exact).abs().nan_to_num(nan=torch.inf)
        worst = torch.unravel_index(difference.argmax().cpu(), exact.shape) if exact.numel() else ()
        index = tuple(int(i) for i in worst)
        verdicts.append(Verdict(op, backend, case.name, name, dtype, _largest(difference), yardstick_errors[name], budgets[name], index))
    return verdicts


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh buffers hold NaN (or the largest integer): what a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
