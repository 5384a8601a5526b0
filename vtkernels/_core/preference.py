"""Which of two backends is the faster one for a kind of call: measured once on a machine, remembered on its disk.

A kind is an op's phase, dtype, shapes (the number of rows to the next power of two) and number of threads. The first call of a
kind that is worth it runs every candidate a few times; later ones, of other processes too, look the winner up. Without a
measurement the order of the backends and the op's own rule decide, the same on every machine with the same instruction set.

`VTKERNELS_MEASURE=0` switches measuring and looking up off; so do torch's deterministic algorithms, as what was measured on one day
need not be what another day measures. Nothing is measured while a graph is traced.
"""

import functools
import json
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vtkernels._core import env, native
from vtkernels._core.op import Op
from vtkernels.version import __version__

log = logging.getLogger("vtkernels")
# below, a call takes less time than is lost by the wrong choice
WORTH_PRODUCTS = 10_000_000
ROUNDS = 3
# by how much the other one must be faster than what runs without a measurement: disturbances are of that size
MARGIN = 0.95
# the native kernels pack the weights for every call: too much for a few rows
FEW_ROWS = 64
# where they were seen ahead of torch's BLAS; elsewhere only a measurement says so
FAST_ISAS = ("avx512", "avx512_bf16")


class Preference:
    """Runs an op's calls on the faster one of `candidates`. Calls have an `x`, `rows`, `products`, and shapes of parameters."""

    def __init__(self, op: Op, candidates: tuple[str, str]):
        self.op, self.candidates = op, candidates
        op.prefer(self.choice)

    def choice(self, phase: str, call: Any) -> str | None:
        """The backend `auto` should try first; None leaves it to the order of the backends. Reads metadata only."""
        if call.x.device.type != "cpu":
            return None
        if call.x.dtype != torch.float32:
            return "torch"
        known = _known().get(_kind(self.op.name, phase, call)) if _measuring() and call.products >= WORTH_PRODUCTS else None
        if known in self.candidates:
            return known
        return self._rule(call)

    def _rule(self, call: Any) -> str:
        return "cpu" if call.rows >= FEW_ROWS and native.isa() in FAST_ISAS else "torch"

    def run(self, phase: str, backend: str, call: Any, *rest: Any) -> Any:
        """Select and launch; before the first call of its kind, measure."""
        if backend == "auto" and self._unknown(phase, call):
            self._measure(phase, call, rest)
        return self.op.select(phase, backend, call)(call, *rest)

    def _unknown(self, phase: str, call: Any) -> bool:
        if (
            call.x.dtype != torch.float32
            or call.products < WORTH_PRODUCTS
            or not _measuring()
            or env.default_backend() != "auto"
            or torch.compiler.is_compiling()
        ):
            return False
        able = all(self.op.backend(name).why_not(phase, call) is None for name in self.candidates)
        return able and _kind(self.op.name, phase, call) not in _known()

    def _measure(self, phase: str, call: Any, rest: tuple[Any, ...]) -> None:
        seconds = {name: [] for name in self.candidates}
        # in turns, so that a disturbance meets all; the first round warms up
        for round_ in range(ROUNDS + 1):
            for name, times in seconds.items():
                start = time.perf_counter()
                self.op.backend(name).phases[phase](call, *rest)
                if round_:
                    times.append(time.perf_counter() - start)
        usual = self._rule(call)
        best = min(seconds, key=lambda name: min(seconds[name]) * (MARGIN if name == usual else 1.0))
        kind = _kind(self.op.name, phase, call)
        log.info("measured %s: %s", kind, ", ".join(f"{name} {min(times) * 1e3:.2f} ms" for name, times in seconds.items()))
        _remember(kind, best)


def _measuring() -> bool:
    return env.measuring() and not torch.are_deterministic_algorithms_enabled()


def _kind(op: str, phase: str, call: Any) -> str:
    rows = 1 << max(call.rows - 1, 0).bit_length()
    shapes = " ".join("x".join(map(str, value.shape)) for value in call if isinstance(value, torch.Tensor) and value is not call.x)
    words = [value for value in call if isinstance(value, str)]
    return f"{op} {phase} {str(call.x.dtype).removeprefix('torch.')} {rows} rows, {shapes}, {' '.join(words)}, {torch.get_num_threads()} threads"


# ---- what is known, in this process and on the disk --------------------------------------------------------------------


@functools.cache
def _known() -> dict[str, str]:
    try:
        found = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return {kind: name for kind, name in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def _remember(kind: str, backend: str) -> None:
    _known()[kind] = backend
    path = _file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # what other processes found meanwhile
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            found = {}
        # a reader never sees half a file
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({**(found if isinstance(found, dict) else {}), kind: backend}, file, indent=1, sort_keys=True)
        os.replace(file.name, path)
    except OSError as error:
        log.info("measurements are not remembered: %s", error)


def _file() -> Path:
    machine = "".join(letter if letter.isalnum() else "-" for letter in f"{_cpu_model()} {native.isa()}")
    return _cache_folder() / f"{machine}_torch-{torch.__version__}_vtkernels-{__version__}.json"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtkernels" / "preferred"


@functools.cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def forget() -> None:
    """Read the disk anew at the next call."""
    _known.cache_clear()
