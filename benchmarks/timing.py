"""Interleaved timing of the sides of one comparison, on a machine that may be shared.

Every round takes one sample of every side, in rotating order, so that drift of the clock hits all alike and a ratio can
be formed inside each round. A round in which somebody else used the processors is thrown away and repeated.
"""

import contextlib
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# One busy foreign thread makes OpenMP barriers wait for whole scheduler ticks, which falsifies far more than its share.
DISTURBED = 0.04
TICK = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


@contextlib.contextmanager
def setting(gradients: bool, precision: str) -> Iterator[None]:
    """How a side is run: with or without gradients, and with torch's float32 products at this precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Side:
    """One way to do the work. `context` is entered around each sample, outside the clock."""

    name: str
    run: Callable[[], Any]
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


@dataclass(frozen=True)
class Plan:
    """How long to measure. Rounds last at least `round_s`, or /proc/stat's 10 ms ticks could not resolve a 4 % disturbance."""

    rounds: int = 9
    sample_s: float = 0.010
    round_s: float = 0.25
    warmup_s: float = 0.10


QUICK = Plan(rounds=3, round_s=0.10, warmup_s=0.02)


@dataclass
class Timings:
    """Seconds per call of every side, one number per kept round."""

    rounds: list[dict[str, float]]
    dropped: int = 0
    disturbed: int = field(default=0)  # kept although disturbed, because no quiet round was to be had

    def seconds(self, name: str) -> float:
        return statistics.median(r[name] for r in self.rounds)

    def spread(self, name: str) -> float:
        """Distance of the quartiles over the median."""
        values = [r[name] for r in self.rounds]
        if len(values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return (high - low) / statistics.median(values)

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster `fast` is: the median of the rounds' own ratios."""
        return statistics.median(r[slow] / r[fast] for r in self.rounds)

    def fastest(self, names: list[str]) -> str | None:
        return min(names, key=self.seconds, default=None)


class Watch:
    """The share of the processors this process may use that went to others (or to the hypervisor) since it was made."""

    def __init__(self) -> None:
        self._cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._wall, self._own, self._idle = time.perf_counter(), time.process_time(), _idle_seconds()

    def others(self) -> float:
        idle = _idle_seconds()
        if idle is None or self._idle is None:
            return 0.0
        wall = time.perf_counter() - self._wall
        busy = self._cpus * wall - (idle - self._idle) - (time.process_time() - self._own)
        # each processor's idle time is cut to whole ticks, at both ends
        return max(0.0, busy - TICK * math.sqrt(self._cpus)) / (self._cpus * wall)


def can_watch() -> bool:
    return _idle_seconds() is not None


def _idle_seconds() -> float | None:
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    mine = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    fields = [line.split() for line in lines if line.split(" ", 1)[0] in mine]
    return sum(int(f[4]) + int(f[5]) for f in fields) * TICK


def measure(sides: list[Side], plan: Plan, synchronize: Callable[[], None] = lambda: None) -> Timings:
    """Time every side in interleaved rounds; as many disturbed rounds are repeated as the plan has rounds."""
    sample_s = max(plan.sample_s, plan.round_s / len(sides))
    repeats = {side.name: _calibrate(side, sample_s, plan.warmup_s, synchronize) for side in sides}
    quiet: list[dict[str, float]] = []
    noisy: list[tuple[float, dict[str, float]]] = []
    gc_was_on = gc.isenabled()
    gc.disable()
    try:
        while len(quiet) < plan.rounds and len(noisy) <= plan.rounds:
            gc.collect()
            first = (len(quiet) + len(noisy)) % len(sides)
            watch = Watch()
            times = {side.name: _sample(side, repeats[side.name], synchronize) for side in sides[first:] + sides[:first]}
            others = watch.others()
            if others > DISTURBED:
                noisy.append((others, times))
            else:
                quiet.append(times)
    finally:
        if gc_was_on:
            gc.enable()
    missing = plan.rounds - len(quiet)
    if missing <= 0:
        return Timings(quiet, dropped=len(noisy))
    least = sorted(noisy, key=lambda pair: pair[0])[:missing]
    return Timings(quiet + [times for _, times in least], dropped=len(noisy) - len(least), disturbed=len(least))


def _sample(side: Side, repeats: int, synchronize: Callable[[], None]) -> float:
    """Seconds per call over `repeats` calls; one call before the clock brings the side's data back into the caches."""
    with side.context():
        side.run()
        synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            side.run()
        synchronize()
        return (time.perf_counter() - start) / repeats


def _calibrate(side: Side, sample_s: float, warmup_s: float, synchronize: Callable[[], None]) -> int:
    """Warm the side up; calls that fill a sample."""
    per_call = _sample(side, 1, synchronize)
    spent = per_call
    while spent < warmup_s:
        per_call = min(per_call, _sample(side, 1, synchronize))
        spent += 2 * per_call
    return max(1, math.ceil(sample_s / per_call))
