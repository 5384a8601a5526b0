"""Is every op right on this GPU, in every dtype and by every backend, and to the bit repeatable? Asked by several processes at once.

Compiling the kernels is what takes the time, on one core for each process. And what an illegal access or a kernel without end costs is one
check and the process that made it, not the run.
"""

import contextlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import gpu_ops
import torch
from gpu_run import Run, free, is_lost, told

from vtkernels._core import testing
from vtkernels._core.op import OPS

BACKENDS = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu",)}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# leaves a core for this process, and for ptxas, which each of the others starts
PROCESSES = min(12, max(1, (os.cpu_count() or 1) - 3))
# seconds: that a check may take, which includes the start of a process; that must be left for one; that it may take beyond the time
PATIENCE, CHECK, LATE = 100.0, 5.0, 15.0


class Check(NamedTuple):
    """By names, as other processes are told of it."""

    op: str
    case: str
    dtype: str
    backend: str

    def __str__(self) -> str:
        return f"{self.op} on {self.backend}: {self.case} in {self.dtype}"


class Build(NamedTuple):
    """A shape that will be timed, by the name of its comparison. Its kernels are compiled here, so that the timing does not wait for them."""

    name: str

    def __str__(self) -> str:
        return f"the build of {self.name}"


class Answer(NamedTuple):
    """What is wrong; or why the backend does not run the case; or why there is no answer."""

    wrong: list[str] = []
    refused: str | None = None
    failed: str | None = None
    # nothing more can be done in the process that says so
    lost: bool = False


def checks(device: str, dry: bool = False) -> list[Check]:
    """Representative cases first."""
    rows = [
        (op, case, dtype, name) for op in OPS for case in testing.cases(op) for dtype in DTYPES for name in BACKENDS[device] if name in OPS[op].backend_names
    ]
    if dry:
        first = {op: next(case.name for case in testing.cases(op) if case.representative) for op in OPS}
        rows = [row for row in rows if row[1].name == first[row[0]] and row[2] == torch.float32]
    # the representative cases in every dtype, then the rest dtype by dtype; the reference has only its dtypes to show, and
    # multi-tensor kernels treat their dtypes alike
    rows = [row for row in rows if row[1].representative or row[3] != "reference" and (testing.has_gradients(row[0]) or row[2] == torch.float32)]
    rows.sort(key=lambda row: (not row[1].representative, DTYPES.index(row[2])))
    return [Check(op, case.name, str(dtype).removeprefix("torch."), backend) for op, case, dtype, backend in rows]


def check_all(run: Run, seconds: float, timed: list[str], processes: int = PROCESSES) -> None:
    """Until `seconds` of the run are over; in this process where there shall be none beside it. `timed` names what is to be built meanwhile."""
    if "checked" in run.result:
        return
    run.result |= {"refused": {}, "checked": 0}
    asked = checks(run.device, run.dry)
    for check, answer in _together([*map(Build, timed), *asked], run, seconds, processes) if processes else _alone(asked, run, seconds):
        if isinstance(check, Build) and (answer is None or not answer.failed):
            continue
        if answer is None:
            run.skip(f"correctness of {check}: no time left")
        elif answer.failed:
            run.result["failed"][str(check) if isinstance(check, Build) else f"correctness of {check}"] = answer.failed
            print(f"FAILED {check}: {answer.failed}", flush=True)
        elif answer.refused:
            run.result["refused"][str(check)] = answer.refused
        else:
            note(run, str(check), answer.wrong)
    run.save()


def note(run: Run, name: str, wrong: list[str] | None) -> None:
    """Of a check that was made."""
    if wrong is not None:
        run.result["checked"] += 1
        run.result["wrong"] += wrong
        print(f"{'WRONG' if wrong else 'right'}  {name}", flush=True)


def answer(check: Check | Build, device: str) -> Answer:
    try:
        if isinstance(check, Build):
            gpu_ops.build(check.name, device)
            # gigabytes, which torch would keep for this process, and there are a dozen
            free(device)
            return Answer()
        found = problems(check, device)
    except Exception as error:  # one kernel must not cost the other checks
        return Answer(failed=told(error), lost=is_lost(device))
    return Answer(refused=found) if isinstance(found, str) else Answer(found)


def problems(check: Check, device: str) -> list[str] | str:
    """What is wrong; or, as a sentence, why the backend does not run the case."""
    op, backend, dtype = check.op, check.backend, getattr(torch, check.dtype)
    case = next(case for case in testing.cases(op) if case.name == check.case)
    if reason := testing.why_not(op, case.inputs(dtype, device), backend):
        return reason
    with testing.poisoned_memory():
        first, second = (testing.run_case(op, case.inputs(dtype, device), backend) for _ in range(2))
    wrong = [str(verdict) for verdict in testing.judge_outcome(op, backend, case, dtype, first, device) if not verdict.passed]
    # of the reference torch decides in which order it sums
    differing = [quantity for quantity, value in first.items() if backend != "reference" and not torch.equal(value, second[quantity])]
    return wrong + [f"{op}, backend {backend}, case {check.case}, {check.dtype}: {quantity} differs from run to run" for quantity in differing]


Answers = Iterator[tuple[Check | Build, Answer | None]]


def _alone(asked: list[Check], run: Run, seconds: float) -> Answers:
    for check in asked:
        yield check, answer(check, run.device) if run.clock.spent + CHECK <= seconds else None


class _Other:
    """A process that answers one check after another."""

    def __init__(self, device: str):
        # a process that has used CUDA cannot be forked
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, device), daemon=True)
        self.process.start()
        theirs.close()
        self.check: Check | Build | None = None
        self.until = 0.0

    def ask(self, check: Check | Build, patience: float) -> None:
        self.check, self.until = check, time.monotonic() + patience
        # one that has died meanwhile has its answer to that
        with contextlib.suppress(OSError):
            self.pipe.send(check)

    def answer(self) -> Answer:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5.0)
            return Answer(failed=f"its process ended with {self.process.exitcode}", lost=True)

    def end(self) -> None:
        self.process.kill()
        self.process.join(5.0)
        self.pipe.close()


def _serve(pipe: Connection, device: str) -> None:
    torch.set_num_threads(1)
    # cuBLAS repeats itself to the bit only with workspaces of its own
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    while True:
        found = answer(pipe.recv(), device)
        pipe.send(found)
        if found.lost:
            return


def _together(asked: list[Check | Build], run: Run, seconds: float, processes: int) -> Answers:
    waiting, others = deque(asked), []
    started = served = 0
    try:
        while waiting or any(other.check for other in others):
            while waiting and run.clock.spent + CHECK > seconds:
                yield waiting.popleft(), None
            while len(others) < min(processes, len(waiting)):
                if started >= 2 * processes and not served:
                    # no process can be had here
                    yield from _alone([*waiting], run, seconds)
                    return
                others.append(_Other(run.device))
                started += 1
            for other in others:
                if other.check is None and waiting:
                    other.ask(waiting.popleft(), min(PATIENCE, seconds - run.clock.spent + LATE))
            answered = wait([other.pipe for other in others if other.check], timeout=1.0)
            for other in list(others):
                if other.pipe in answered:
                    check, other.check, found = other.check, None, other.answer()
                elif other.check and time.monotonic() > other.until:
                    check, other.check, found = other.check, None, Answer(failed="it did not end in time", lost=True)
                else:
                    continue
                if found.lost:
                    others.remove(other)
                    other.end()
                else:
                    served += 1
                yield check, found
    finally:
        for other in others:
            other.end()
