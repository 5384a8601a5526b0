"""What every benchmark says about itself: the machine, the versions, the settings; and how a result is shown and kept."""

import contextlib
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import vtkernels as vt
from vtkernels._core import native

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "triton", "numpy", "timm")
# Outputs beyond glibc's mmap threshold are mapped, faulted in and unmapped on every call, which can cost more than the kernel.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31), "MALLOC_TOP_PAD_": str(1 << 26)}


def restart_with(variables: dict[str, str]) -> None:
    """Run this very command anew with the variables set, unless they are: glibc reads its own only at the start."""
    if any(os.environ.get(name) != value for name, value in variables.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | variables)


def cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else cpu_model()


def slug(name: str) -> str:
    name = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|nvidia|\d+-core)\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "unknown"


def environment(device: str) -> dict:
    return {
        "device": device_name(device),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "isa": native.isa(),
        "threads": torch.get_num_threads(),
        "allocator": {name: os.environ[name] for name in TUNED_MALLOC if name in os.environ} or "default",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "vtkernels": vt.__version__,
        "commit": _commit(),
        "versions": {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def driver() -> str | None:
    """The NVIDIA driver's version."""
    with contextlib.suppress(OSError):
        if found := re.search(r"Kernel Module[^\d]*(\S+)", Path("/proc/driver/nvidia/version").read_text()):
            return found[1]
    # containers and virtual machines may hide the file
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The short commit, with a + where tracked files differ from it; of a copy without its history, what VTKERNELS_COMMIT says."""

    def git(*arguments: str) -> str:
        # the copy may be another user's, which git would refuse to look at
        return subprocess.run(("git", "-c", "safe.directory=*", *arguments), cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("VTKERNELS_COMMIT")


def path_of(folder: Path, name: str, device: str) -> Path:
    return folder / slug(device_name(device)) / f"{name}.json"


def save(result: dict, folder: Path, name: str, device: str) -> Path:
    return write(result, path_of(folder, name, device))


def write(result: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(result, default=str), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    # a reader, and whoever ends this process now, finds the old result or the new one
    unfinished = path.with_suffix(".json.new")
    unfinished.write_text(json.dumps(rounded, indent=1) + "\n")
    os.replace(unfinished, path)
    return path


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """First column left, the others right; by rich where it is installed and the output is a terminal."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(title=title, title_justify="left")
            for number, column in enumerate(columns):
                table.add_column(column, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            Console().print(table)
            return
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    print(f"\n{title}")
    for line in (columns, ["-" * width for width in widths], *rows):
        print("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip())


def shown(path: Path) -> str:
    """A path as the reader would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
