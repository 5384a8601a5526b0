"""`vtkernels info`: versions, devices, the build, and which backend runs which op."""

import importlib
import importlib.util
import platform
from collections.abc import Iterable

import torch

import vtkernels
from vtkernels._core import gpu, native, tuned
from vtkernels._core.op import OPS


def info() -> int:
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
