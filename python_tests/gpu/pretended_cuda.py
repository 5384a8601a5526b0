"""A CUDA device that is a CPU: `cuda` in calls of torch means `cpu`, what torch.cuda says is made up, and graphs are recordings.

For running programs that were written for a GPU to their end where there is none, with Triton's kernels on its interpreter: which of their
lines would fail is seen, and whether their results are right; no time means anything. By hand, with a program of benchmarks/:

TRITON_INTERPRET=1 python -m python_tests.gpu.pretended_cuda gpu_check --out FOLDER
python -m python_tests.gpu.pretended_cuda gpu_models --out FOLDER                      on the CPU's kernels: whole models take the interpreter long
"""

import contextlib
import dataclasses
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vtkernels._core import gpu, testing
from vtkernels._core.testing import BenchCase

NAME = "NVIDIA Pretended"
# what gpu_check is let check here: its checks are the contract's, which is run on the interpreter elsewhere
CHECKED = ("drloc_pairs", "sam_restore_")
PROPERTIES = SimpleNamespace(
    name=NAME, major=9, minor=0, multi_processor_count=4, total_memory=1 << 34, L2_cache_size=1 << 20, shared_memory_per_block_optin=232448
)


@contextlib.contextmanager
def pretended_cuda() -> Iterator[None]:
    """Only for calls from Python: what C++ makes of `cuda` by itself is not caught."""
    stream = SimpleNamespace(cuda_stream=0, wait_stream=lambda other: None, synchronize=lambda: None)
    made_up = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_capability": lambda device=None: (9, 0),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 1 << 20,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_sync_debug_mode": lambda mode: None,
        "is_current_stream_capturing": lambda: False,
        "_sleep": lambda cycles: None,
        "Stream": lambda *_, **__: stream,
        "current_stream": lambda device=None: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "Event": Event,
        "CUDAGraph": Recording,
        "graph": lambda recording, **_: recording.recorded(),
    }
    with contextlib.ExitStack() as stack:
        for name, value in made_up.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch.profiler, "profile", Profile))
        stack.enter_context(OnTheCpu())
        yield


class Event:
    """Of torch.cuda.Event, by the clock of the host."""

    def __init__(self, enable_timing: bool = False):
        assert enable_timing, "an event that does not time tells no time"
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        assert self.at and end.at, "both events must be recorded"
        return 1e3 * (end.at - self.at)


class Profile:
    """Of torch.profiler.profile: no launches are seen, but one, as of a call that makes few."""

    def __init__(self, activities: list[Any] | None = None, **options: Any):
        self.activities = activities

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def events(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="a kernel", device_type=torch.autograd.DeviceType.CUDA)]


class Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return super().__new__(cls.__base__, "cpu")


class OnTheCpu(TorchFunctionMode):
    """Tensors are made on the CPU, and stay there, whatever device is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return func(*map(_here, args), **{name: _here(value) for name, value in (kwargs or {}).items()})


def _here(value: Any) -> Any:
    is_cuda = isinstance(value, torch.device) and value.type == "cuda" or isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))
    return torch.device("cpu") if is_cuda else value


class Recording:
    """Of torch.cuda.CUDAGraph: what the dispatcher runs in a capture, run again on the same tensors; the capture itself leaves them as they were."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple, dict[str, Any], Any]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        with _Recorder(self.calls, before):
            yield
        with torch.no_grad():
            for tensor, old in before.values():
                tensor.copy_(old)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list, before: dict[int, tuple[torch.Tensor, torch.Tensor]]):
        super().__init__()
        self.calls, self.before = calls, before

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(value):
                    self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [tensor for part in tree for tensor in _tensors(part)] if isinstance(tree, (list, tuple)) else []


def main() -> int:
    """A program of benchmarks/, with as little work as shows all its steps."""
    if gpu.interpreted():
        from python_tests.gpu import interpreter

        interpreter.repair()
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    sys.argv = sys.argv[1:]
    program = importlib.import_module(sys.argv[0])
    with pretended_cuda():
        return {"gpu_check": _check, "gpu_models": _models}[sys.argv[0]](program)


def _check(program: Any) -> int:
    import gpu_check_sam
    import gpu_correctness
    import gpu_graph
    import gpu_ops
    import gpu_run
    import peaks
    import sam_problem

    shapes = [gpu_ops.Comparison(op, _small(op)) for op in gpu_ops.FAMILIES]
    few = [check for check in gpu_correctness.checks("cuda") if check.op in CHECKED and check.dtype == "bfloat16"]
    few = [next(check for check in few if (check.op, check.backend) == pair) for pair in dict.fromkeys((check.op, check.backend) for check in few)]
    with (
        mock.patch.object(gpu_ops, "comparisons", lambda batch: shapes),
        mock.patch.dict(gpu_ops.FAMILIES, {op: dataclasses.replace(family, compiled=()) for op, family in gpu_ops.FAMILIES.items()}),
        mock.patch.object(gpu_correctness, "checks", lambda device, dry: few),
        mock.patch.object(gpu_correctness, "PROCESSES", 0),
        mock.patch.object(gpu_run.Run, "_watch", lambda run: None),
        mock.patch.dict(program.ROUNDS, {"cuda": 1}),
        mock.patch.object(gpu_run, "EVICTING_BYTES", 1 << 12),
        mock.patch.object(peaks, "COPY_BYTES", 1 << 12),
        mock.patch.object(peaks, "_matmul", lambda device, dtype: 1e12),
        mock.patch.dict(sam_problem.MODELS, dict.fromkeys(("vit_b", "vit_s", "swin_t"), sam_problem.MODELS["tiny"])),
        mock.patch.object(gpu_check_sam, "MODELS", ("vit_b",)),
        mock.patch.object(gpu_check_sam, "LARGEST_COUNT", 1),
        # one window of one image, captured and replayed once
        mock.patch.multiple(gpu_graph, IMAGES=1, EDGE=7, REPLAYS=1),
    ):
        return program.main()


def _small(op: str) -> BenchCase:
    """A shape to time: a representative case, which is small."""
    case = next(case for case in testing.cases(op) if case.representative)
    once = {"forward": 1, "backward": 1}
    return BenchCase(case.name, case.why, case.make, elements=once, flops=once)


def _models(program: Any) -> int:
    import gpu_run
    import peaks

    from python_tests.optional import complete_torchvision

    complete_torchvision()
    plan = program.Plan

    def tiny(*given: Any, **options: Any) -> Any:
        return plan(batch=1, rounds=1, calls=1, compiled=False, image=32)

    tiny.batch, tiny.rounds = plan.batch, plan.rounds
    with (
        mock.patch.object(gpu_run.Run, "_watch", lambda run: None),
        mock.patch.object(program, "Plan", tiny),
        mock.patch.object(sys, "argv", [*sys.argv, "--models", "vit_tiny_patch16_224"]),
        mock.patch.object(peaks, "COPY_BYTES", 1 << 12),
        mock.patch.object(peaks, "_matmul", lambda device, dtype: 1e12),
    ):
        return program.main()


if __name__ == "__main__":
    raise SystemExit(main())
