"""Where the time goes."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Seconds of each of some activities, since `restart`."""

    def __init__(self, *activities: str) -> None:
        self.activities = activities
        self.restart()

    def restart(self) -> None:
        self.began = time.perf_counter()
        self.seconds = dict.fromkeys(self.activities, 0.0)

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - began

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began


def most_memory(device: torch.device) -> int:
    """Bytes, the most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes on Linux, bytes on macOS
    return used if sys.platform == "darwin" else used * 1024
