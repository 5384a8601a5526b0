"""`vtkernels tune`: times the launch parameters that an op's launchers declare, on the shapes its `cases.py` names, on the present GPU.

An op is run as its user would run it, while one question of its launchers is answered with one candidate after the other. A candidate
that cannot be launched, or whose results differ from the default's by more than rounding, is refused.
"""

import datetime
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from vtkernels._core import gpu, testing, tuned
from vtkernels._core.op import OPS
from vtkernels._core.testing import Case, Inputs, Outcome
from vtkernels._core.tuned import Entry, Question

# fp16 has the builds of bf16
DTYPES = (torch.bfloat16, torch.float32)
# less is within what a measurement repeats to
WORTH = 0.98
# doublings of a call's numbers together, up to which what was measured just now answers for it
NEAR = 1.0
ROUNDS = 15
# several times the largest second-level cache
EVICTING_BYTES = 512 << 20
# The device sleeps while the host enqueues a run, so that what is timed is the device; some milliseconds
SLEEP_CYCLES = 8_000_000

Run = Callable[[], Any]
# milliseconds of each, in turns
Timer = Callable[[list[Run]], list[float]]


def tune(op: str, device: torch.device, timer: Timer, say: Callable[[str], None] = print, until: float = math.inf) -> dict[str, list[Entry]]:
    """What was measured, by folder; nothing new is begun after `until`, on the clock of `time.monotonic`. What near shapes ask is timed once."""
    found: dict[str, list[Entry]] = {}
    for case in testing.gpu_cases(op):
        for dtype in DTYPES:
            if time.monotonic() > until:
                say(f"{op}, {case.name}, {_short(dtype)}: not tuned: no time left")
                continue
            try:
                _tune_case(op, case, dtype, device, timer, say, found)
            # one shape must not cost what was measured of the others
            except Exception as error:
                lines = str(error).splitlines() or [""]
                say(f"{op}, {case.name}, {_short(dtype)}: not tuned: {type(error).__name__}: {lines[0][:200]}")
    return found


def _tune_case(op: str, case: Case, dtype: torch.dtype, device: torch.device, timer: Timer, say: Callable[[str], None], found: dict[str, list[Entry]]) -> None:
    inputs = case.inputs(dtype, device)
    if reason := testing.why_not(op, inputs, "triton"):
        say(f"{op}, {case.name}, {_short(dtype)}: not tuned: {reason}")
        return
    for question, run in _asked(op, inputs):
        known = found.setdefault(question.folder, [])
        if tuned.nearest(known, question.kernel, question.key, NEAR) is None:
            known.append(_measure(op, inputs, question, run, timer, say))
            say(f"{question.folder} {question.kernel}, {case.name}, {_short(dtype)}: {_told(known[-1])}")


def save(device: torch.device, found: dict[str, list[Entry]]) -> list[str]:
    name = gpu.name(device)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return [str(tuned.write(folder, name, entries, {"torch": torch.__version__, "date": date})) for folder, entries in found.items() if entries]


def cuda_timer(runs: list[Run]) -> list[float]:
    """Medians of interleaved runs, on the device's clock and with a cold cache."""
    evict = torch.ones(EVICTING_BYTES // 4, device="cuda")
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, mine in zip(runs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # read, not written: nothing is left that has to go to memory first
            evict.sum()
            torch.cuda._sleep(SLEEP_CYCLES)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            mine.append(start.elapsed_time(end))
    return [statistics.median(mine) for mine in times]


def _asked(op: str, inputs: Inputs) -> list[tuple[Question, Run]]:
    """Each question of the launchers, with the least that has to run for it to be asked."""
    runs = [_forward(op, inputs)] + ([_training(op, inputs)] if testing.has_gradients(op) else [])
    found: dict[tuple, tuple[Question, Run]] = {}
    for run in runs:
        with tuned.questions() as questions:
            run()
        for question in questions:
            found.setdefault(question[:3], (question, run))
    return list(found.values())


def _forward(op: str, inputs: Inputs) -> Run:
    def run() -> None:
        with torch.no_grad():
            OPS[op].public(**inputs, backend="triton")

    return run


def _training(op: str, inputs: Inputs) -> Run:
    leaves = {name: value.detach().requires_grad_() for name, value in testing.differentiable(inputs).items()}
    upstream: list[torch.Tensor] = []

    def run() -> None:
        outputs = testing.outputs_of(OPS[op].public(**{**inputs, **leaves}, backend="triton"))
        smooth = tuple(output for output in outputs.values() if output.requires_grad)
        if not upstream:
            upstream.extend(testing.upstream_for(smooth))
        torch.autograd.grad(smooth, list(leaves.values()), upstream)

    return run


def _measure(op: str, inputs: Inputs, question: Question, run: Run, timer: Timer, say: Callable[[str], None]) -> Entry:
    truth = testing.run_case(op, inputs, "triton")
    able = [question.default]
    for parameters in dict.fromkeys(question.candidates(question.default)):
        if parameters != question.default and _is_right(op, inputs, question, parameters, truth, say):
            able.append(parameters)
    milliseconds = timer([_under(question, parameters, run) for parameters in able])
    best = min(range(len(able)), key=milliseconds.__getitem__)
    if milliseconds[best] > WORTH * milliseconds[0]:
        best = 0
    return Entry(question.kernel, question.key, able[best]._asdict(), milliseconds[best], milliseconds[0])


def _is_right(op: str, inputs: Inputs, question: Question, parameters: Any, truth: Outcome, say: Callable[[str], None]) -> bool:
    try:
        with tuned.fixed(question, parameters):
            outcome = testing.run_case(op, inputs, "triton")
    # shared memory or registers that are not there, or a compiler that gives up
    except Exception as error:
        lines = str(error).splitlines() or [""]
        say(f"{question.folder} {question.kernel}: {parameters} cannot be launched: {type(error).__name__}: {lines[0][:200]}")
        return False
    for name, expected in truth.items():
        # the order of a sum may differ, nothing else
        tolerance = max(4 * torch.finfo(expected.dtype).eps, 1e-5) if expected.is_floating_point() else 0.0
        error = (outcome[name].double() - expected.double()).norm()
        # written so that a NaN is refused
        if not error <= tolerance * expected.double().norm():
            say(f"{question.folder} {question.kernel}: {parameters} gives another {name}, off by {float(error):.1e}: not used")
            return False
    return True


def _under(question: Question, parameters: Any, run: Run) -> Run:
    def fixed() -> None:
        with tuned.fixed(question, parameters):
            run()

    return fixed


def _told(entry: Entry) -> str:
    gain = entry.default_milliseconds / entry.milliseconds if entry.milliseconds else 1.0
    return f"{entry.milliseconds:.4f} ms, {gain:.2f}x the default, with {', '.join(f'{name} {value}' for name, value in entry.parameters.items())}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
