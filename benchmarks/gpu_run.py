"""What the GPU scripts share: a clock, steps that may fail without ending the run, a result that is saved after each, and device times."""

import contextlib
import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import report
import torch
from timing import Side

T = TypeVar("T")
# The device sleeps while the host enqueues a sample, so that what is timed is the device; some milliseconds
SLEEP_CYCLES = 8_000_000
# several times the largest second-level cache
EVICTING_BYTES = 512 << 20
# seconds
SAVE_EVERY = 2.0


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
    """A result in the making. What cannot be done is written down, and the run goes on."""

    def __init__(self, name: str, device: str, minutes: float, folder: Path, dry: bool = False):
        self.name, self.device, self.folder, self.dry = name, device, folder, dry
        self.clock = Clock(60 * minutes)
        self.result: dict[str, Any] = {"benchmark": name, "dry": dry, "environment": report.environment(device), "skipped": [], "failed": {}, "wrong": []}
        if device == "cuda":
            self.result["machine"] = machine()
        self.lost = False
        self._saved = 0.0

    def attempt(self, name: str, work: Callable[[], T], seconds: float = 0.0, share: float = 1.0) -> T | None:
        """What `work` returns, or None where there is no time for it, or where it failed."""
        if self.lost or seconds and not self.clock.allows(seconds, share):
            self.result["skipped"].append(f"{name}: {'the device does not answer any more' if self.lost else 'no time left'}")
            return None
        try:
            return work()
        except Exception as error:  # one kernel, or one peer, must not cost the rest
            self.fail(name, error)
            return None
        finally:
            # hundreds of steps are over in a moment
            if self.clock.spent - self._saved > SAVE_EVERY:
                self.save()

    def fail(self, name: str, error: Exception) -> None:
        self.result["failed"][name] = told(error)
        print(f"FAILED {name}: {told(error)}", flush=True)
        # frames hold tensors: after an out-of-memory error they would be the reason of the next one
        traceback.clear_frames(error.__traceback__)
        free(self.device)
        if self.device == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                # an illegal access leaves a context in which nothing runs
                self.lost = True

    def save(self) -> Path:
        self._saved = self.result["seconds"] = self.clock.spent
        return report.save(self.result, self.folder, self.name, self.device)

    def finish(self) -> int:
        """Where the result is, and 1 where something was wrong or failed."""
        path, wrong, failed, skipped = self.save(), self.result["wrong"], self.result["failed"], self.result["skipped"]
        print(f"\n{len(wrong)} wrong, {len(failed)} failed, {len(skipped)} skipped; {self.clock.spent:.0f} s; {report.shown(path)}")
        print(*wrong, *(f"failed: {name}: {reason}" for name, reason in failed.items()), sep="\n")
        return int(bool(wrong or failed))


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
    timer = _on_device if device == "cuda" else _on_host
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


def _on_device(side: Side, evict: torch.Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with side.context():
        evict.sum()
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        side.run()
        end.record()
    torch.cuda.synchronize()
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
