"""On what, and with which versions, a run was made."""

import importlib
import os
import platform
import subprocess
from pathlib import Path

import numpy
import torch

from vtkernels.version import __version__


def surroundings(device: torch.device) -> dict[str, str]:
    """Name -> value, for people."""
    return {
        "vtkernels": __version__,
        "commit": commit() or "unknown",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": numpy.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device(device),
    }


def commit() -> str | None:
    """Of the working copy that the package is in, marked where it was changed; None outside of one."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _version(name: str) -> str:
    try:
        return importlib.import_module(name).__version__
    # a broken installation raises whatever it likes
    except Exception:
        return "none"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, sm_{found.major}{found.minor}, CUDA {torch.version.cuda}"
    return f"{_processor()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def _processor() -> str:
    try:
        names = [text.partition(":")[2].strip() for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "a CPU"
