"""The command line: `vtkernels info`, `vtkernels check` and `vtkernels tune`."""

import argparse
import importlib
import importlib.util
import math
import platform
import sys
import time
from collections.abc import Iterable

import torch

import vtkernels
from vtkernels._core import gpu, native, testing, tune, tuned
from vtkernels._core.op import OPS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vtkernels", description=vtkernels.__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    info = commands.add_parser("info", help="versions, devices, the build, and which backend runs which op")
    info.set_defaults(run=lambda options: _info())
    check = commands.add_parser("check", help="hold every backend that runs here to its op's contract")
    check.add_argument("op", nargs="?", choices=sorted(OPS), help="default: all")
    check.set_defaults(run=lambda options: _check([options.op] if options.op else sorted(OPS)))
    tuner = commands.add_parser("tune", help="measure how the Triton kernels are best launched on this GPU, and keep it for later calls")
    tuner.add_argument("op", nargs="?", choices=sorted(OPS), help="default: all")
    tuner.add_argument("--minutes", type=float, default=math.inf, help="begin nothing new after so long; what was measured by then is kept")
    tuner.set_defaults(run=lambda options: _tune([options.op] if options.op else sorted(OPS), options.minutes))
    options = parser.parse_args(arguments)
    return options.run(options)


def _info() -> int:
    system = _system()
    facts = {
        "vtkernels": vtkernels.__version__,
        "python": f"{platform.python_version()} on {platform.machine()} {platform.system()}",
        "torch": torch.__version__,
        "triton": _triton(),
        "devices": ", ".join(_devices()),
        "cpu": _cpu(system),
        "kernels": native.isa(),
        "build": _build(system),
    }
    for name, value in facts.items():
        print(f"{name:10} {value}")
    for op, reasons in vtkernels.backends().items():
        print(f"\n{op}")
        for backend, reason in reasons.items():
            print(f"  {backend:10} {'runs' if reason is None else reason}")
    for path in _tuned_files():
        print(f"\nlaunch parameters measured on this GPU: {path}")
    return 0


def _tuned_files() -> Iterable[str]:
    if not torch.cuda.is_available():
        return
    name = gpu.name(torch.device("cuda", torch.cuda.current_device()))
    for folder in dict.fromkeys(op.package.rpartition(".")[2] for op in OPS.values()):
        yield from (str(path) for path in (tuned.packaged(folder, name), tuned.personal(folder, name)) if path.exists())


def _system():
    """The extension of helpers, or None where it was not built."""
    found = importlib.util.find_spec("vtkernels._system")
    return importlib.import_module("vtkernels._system") if found else None


def _triton() -> str:
    try:
        return importlib.import_module("triton").__version__
    except Exception as error:  # a broken installation raises whatever it likes
        return f"missing ({error}); pip install 'vtkernels[gpu]'"


def _devices() -> Iterable[str]:
    yield f"cpu ({torch.get_num_threads()} threads)"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {device.name} (sm_{device.major}{device.minor}, {device.total_memory / 2**30:.0f} GiB)"


def _cpu(system) -> str:
    if system is None:
        return "unknown: the helpers were not built"
    features = [name for name, there in system.cpu_features().items() if there]
    caches = [f"{level} {size // 1024} KiB" for level, size in system.cpu_caches().items()]
    return f"{' '.join(features) or 'no vector extension the kernels know'}; {', '.join(caches)}"


def _build(system) -> str:
    if system is None:
        return "pure Python"
    build = system.build_info()
    return f"{build['compiler']}, {build['flags']}, for {' '.join(build['isas'])}, torch {build['torch']}, commit {build['commit'] or 'unknown'}"


def _check(ops: list[str]) -> int:
    """Every case of the op, with all that comes out of it, against the float64 reference. The reference is the judge, so it is not judged."""
    failures = 0
    for op in ops:
        for backend, reason in vtkernels.backends()[op].items():
            if backend == "reference":
                continue
            if reason is not None:
                print(f"{op} {backend}: cannot run here: {reason}")
                continue
            for device in ("cuda", "cpu"):
                if device == "cpu" or torch.cuda.is_available():
                    failures += _check_backend(op, backend, device)
    return int(failures > 0)


def _check_backend(op: str, backend: str, device: str) -> int:
    """Print what came out in a line, and each failure in another; return the number of failures."""
    verdicts, passed_over = [], 0
    for case in testing.cases(op):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if testing.why_not(op, case.inputs(dtype, device), backend):
                passed_over += 1
                continue
            with testing.poisoned_memory():
                verdicts += testing.judge(op, backend, case, dtype, device)
    if not verdicts:
        return 0
    failed = [verdict for verdict in verdicts if not verdict.passed]
    worst = max(verdicts, key=lambda verdict: verdict.share)
    judged = "outputs and gradients" if testing.has_gradients(op) else "results"
    print(
        f"{op} {backend} on {device}: {len(verdicts) - len(failed)} of {len(verdicts)} {judged} within the error budget, "
        f"the closest at {worst.share:.0%} ({worst.case}, {worst.quantity}); {passed_over} runs are not for this backend"
    )
    for verdict in failed:
        print(f"  FAILED {verdict}")
    return len(failed)


def _tune(ops: list[str], minutes: float) -> int:
    if not torch.cuda.is_available():
        print("vtkernels tune: expected a CUDA device, this torch sees none; without one, launch parameters stay the careful ones", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    until = time.monotonic() + 60 * minutes
    paths = [path for op in ops for path in tune.save(device, tune.tune(op, device, tune.cuda_timer, until=until))]
    for path in dict.fromkeys(paths):
        print(f"written: {path}")
    return 0 if paths else 1
