"""What the GPU scripts share: a clock, steps that may fail without ending the run, a result that is saved after each, and device times."""

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import report
import torch
from timing import Side

T = TypeVar("T")
# The device sleeps while the host enqueues a sample, so that what is timed is the device: some milliseconds, or what the host took before
SLEEP_CYCLES, LONGEST_SLEEP, CYCLES_PER_SECOND = 8_000_000, 100_000_000, 2e9
# several times the largest second-level cache
EVICTING_BYTES = 512 << 20
# seconds: between two savings; that a step may take; beyond the run's own time, before it is ended; that a fresh process needs to be worth it
SAVE_EVERY, PATIENCE, GRACE, STARTING = 2.0, 120.0, 40.0, 30.0
# of one run
RESTARTS = 6
RESUME = "--resume"


@dataclass
class Clock:
    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    def allows(self, seconds: float, share: float = 1.0) -> bool:
        return self.spent + seconds <= self.seconds * share


class Run:
    """A result in the making. What cannot be done is written down, and the run goes on.

    A kernel that breaks the device's context, or never ends, takes its process with it. The run then goes on behind that step in a fresh
    process, which finds in the file what was done; `resume` says that this is one.
    """

    def __init__(self, name: str, device: str, minutes: float, folder: Path, dry: bool = False, resume: bool = False):
        self.name, self.device, self.dry = name, device, dry
        # asked for now: a device that is lost has no name
        self.path = report.path_of(folder, name, device)
        self.clock = Clock(60 * minutes)
        self.lost = False
        self._saved = 0.0
        self._saving = threading.Lock()
        self._step: Step | None = None
        if resume:
            self.result: dict[str, Any] = json.loads(self.path.read_text())
            self.clock.start -= self.result["seconds"]
        else:
            self.result = {"benchmark": name, "dry": dry, "environment": report.environment(device), "skipped": [], "failed": {}, "wrong": []}
            self.result |= {"machine": machine()} if device == "cuda" else {}
            self.result |= {"restarts": 0, "done": []}
        if device == "cuda":
            threading.Thread(target=self._watch, daemon=True).start()

    def attempt(self, name: str, work: Callable[[], T], seconds: float = 0.0, share: float = 1.0, patience: float = PATIENCE, again: bool = False) -> T | None:
        """What `work` returns, or None where there is no time for it, or where it failed.

        None, too, where an earlier process of this run has done it, except of what is to be done `again`, or has failed at it. A step
        that takes longer than `patience` is taken for one that never ends.
        """
        if not self.wants(name, again):
            return None
        if self.lost or seconds and not self.clock.allows(seconds, share):
            self.skip(f"{name}: {'the device does not answer any more' if self.lost else 'no time left'}")
            return None
        self._step = Step(name, time.monotonic() + patience)
        try:
            found = work()
            # a step survives what breaks one of its sides; the next one would not
            if is_lost(self.device):
                raise RuntimeError("it broke the device's context")
            self.result["done"].append(name)
            return found
        except Exception as error:  # one kernel, or one peer, must not cost the rest
            self.fail(name, error)
            return None
        finally:
            self._step = None
            # hundreds of steps are over in a moment
            if self.clock.spent - self._saved > SAVE_EVERY:
                self.save()

    def wants(self, name: str, again: bool = False) -> bool:
        """Whether a step is still to be attempted."""
        return name not in self.result["failed"] and (again or name not in self.result["done"])

    def skip(self, line: str) -> None:
        if line not in self.result["skipped"]:
            self.result["skipped"].append(line)

    def fail(self, name: str, error: Exception) -> None:
        self.result["failed"][name] = told(error)
        print(f"FAILED {name}: {told(error)}", flush=True)
        # frames hold tensors: after an out-of-memory error they would be the reason of the next one
        traceback.clear_frames(error.__traceback__)
        free(self.device)
        if is_lost(self.device):
            self.lost = True
            self._begin_anew()

    def _watch(self) -> None:
        """On a thread of its own: nothing else runs while a kernel does not end."""
        while True:
            time.sleep(1.0)
            step = self._step
            if step is not None and time.monotonic() > step.until:
                self.result["failed"][step.name] = "it did not end"
                print(f"FAILED {step.name}: it did not end", flush=True)
                self._begin_anew()
                os._exit(1)
            if self.clock.spent > self.clock.seconds + GRACE:
                self.skip(f"{step.name if step else 'the rest'}: the time was over")
                # the other thread may be adding to the result
                with contextlib.suppress(RuntimeError):
                    self.save()
                print(f"the time is over; {report.shown(self.path)}", flush=True)
                os._exit(1)

    def _begin_anew(self) -> None:
        """Go on behind the present step in a fresh process, if there may be one; it takes this one's place."""
        self.result["restarts"] += 1
        self.save()
        if self.result["restarts"] <= RESTARTS and self.clock.allows(STARTING):
            print("going on in a fresh process", flush=True)
            os.execv(sys.executable, [sys.executable, *(argument for argument in sys.argv if argument != RESUME), RESUME])

    def save(self) -> Path:
        with self._saving:
            self._saved = self.result["seconds"] = self.clock.spent
            return report.write(self.result, self.path)

    def finish(self) -> int:
        """Where the result is, and 1 where something was wrong or failed."""
        path, wrong, failed, skipped = self.save(), self.result["wrong"], self.result["failed"], self.result["skipped"]
        print(f"\n{len(wrong)} wrong, {len(failed)} failed, {len(skipped)} skipped; {self.clock.spent:.0f} s; {report.shown(path)}")
        print(*wrong, *(f"failed: {name}: {reason}" for name, reason in failed.items()), sep="\n")
        return int(bool(wrong or failed))


class Step(NamedTuple):
    name: str
    # of time.monotonic
    until: float


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The flag that a run gives itself when it goes on in a fresh process."""
    parser.add_argument(RESUME, action="store_true", help=argparse.SUPPRESS)


def is_lost(device: str) -> bool:
    """An illegal access leaves a context in which nothing runs."""
    if device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def told(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GB": properties.total_memory / 1e9,
        "second_level_cache_MB": properties.L2_cache_size / 1e6,
        "cuda": torch.version.cuda,
        "driver": report.driver(),
    }


def free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        # a lost device raises here too
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def interleaved(sides: list[Side], rounds: int, device: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds of every side in every round, in rotating order and with a cold cache; and why a side has none.

    Between samples a buffer beyond the second-level cache is read: inputs come from memory, and no line has to be written back first.
    """
    timer = _OnDevice() if device == "cuda" else _on_host
    evict = torch.ones(EVICTING_BYTES // 4, device=device) if device == "cuda" else None
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    failed: dict[str, str] = {}
    for turn in range(-2, rounds):
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            if side.name in failed:
                continue
            try:
                milliseconds = timer(side, evict)
            except Exception as error:  # out of memory, most likely
                failed[side.name] = told(error)
                traceback.clear_frames(error.__traceback__)
                free(device)
                continue
            if turn >= 0:
                times[side.name].append(milliseconds)
    return {name: found for name, found in times.items() if name not in failed}, failed


class _OnDevice:
    """Milliseconds of a side between two events. The device sleeps before the first until the host has enqueued all that is timed."""

    def __init__(self) -> None:
        self._cycles: dict[str, int] = {}

    def __call__(self, side: Side, evict: torch.Tensor) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with side.context():
            evict.sum()
            torch.cuda._sleep(self._cycles.get(side.name, SLEEP_CYCLES))
            began = time.perf_counter()
            start.record()
            side.run()
            end.record()
            enqueued = time.perf_counter() - began
        torch.cuda.synchronize()
        # the first time a kernel may have been compiled: rounds that count are preceded by two that do not
        self._cycles[side.name] = min(LONGEST_SLEEP, max(SLEEP_CYCLES, int(1.5 * enqueued * CYCLES_PER_SECOND)))
        return start.elapsed_time(end)


def _on_host(side: Side, evict: None) -> float:
    with side.context():
        start = time.perf_counter()
        side.run()
        return 1e3 * (time.perf_counter() - start)


def spread(times: list[float]) -> float:
    """Distance of the quartiles over the median."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / middle


def peak_extra(side: Side) -> int:
    """Most bytes allocated at once during a call, beyond what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with side.context():
        side.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
