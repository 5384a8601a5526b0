"""Launch parameters by measurement: a launcher asks for those of its call, and gets what was measured on this device for the nearest one.

A folder of ops has one file for each device that was measured, `<device>.json`: in the package, `ops/<folder>/tuned/`, and in the
user's folder (`VTKERNELS_TUNED`), as `<folder>/<device>.json`. Both are read, and of equal entries the user's wins: it was measured on
this very machine. Where nothing is close, the launcher's own careful choice stands. What a parameter means only the launcher knows.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from vtkernels._core import env, gpu

log = logging.getLogger("vtkernels")

# Doublings, or halvings, of all numbers of a key together, up to which a measurement says anything about another call
FARTHEST = 4.0

Parameters = TypeVar("Parameters", bound=tuple)
Key = tuple[tuple[str, int | str], ...]


class Question(NamedTuple):
    """What a launcher asked: its kernel, the call's key, and which parameters it might be launched with."""

    folder: str
    kernel: str
    key: Key
    default: Any
    candidates: Callable[[Any], list[Any]]


class Entry(NamedTuple):
    """A measurement: the parameters that were fastest, and the milliseconds of these and of the launcher's own choice."""

    kernel: str
    key: Key
    parameters: dict[str, Any]
    milliseconds: float
    default_milliseconds: float


# set while tuning only; process-wide, since a backward runs on a thread of autograd's
_asked: list[Question] | None = None
_fixed: dict[tuple[str, str, Key], Any] = {}


def lookup(
    folder: str, kernel: str, key: dict[str, int | str], default: Parameters, candidates: Callable[[Parameters], list[Parameters]], device: torch.device
) -> Parameters:
    """`default`, a named tuple, with what was measured for the nearest call on this device in place of the launcher's choice.

    Strings of a key must agree: they say which build of the kernel runs. Numbers may differ, and count by their ratio.
    """
    if _asked is None and (device.type != "cuda" or not env.tuned()):
        return default
    pairs = tuple(key.items())
    if _asked is not None:
        _asked.append(Question(folder, kernel, pairs, default, candidates))
        return _fixed.get((folder, kernel, pairs), default)
    found = _nearest(folder, kernel, pairs, gpu.name(device))
    return default if found is None else default._replace(**{name: value for name, value in found.items() if name in default._fields})


@contextlib.contextmanager
def questions() -> Iterator[list[Question]]:
    """Collects what launchers ask, and lets nothing but `fixed` answer."""
    global _asked
    _asked = []
    try:
        yield _asked
    finally:
        _asked = None


@contextlib.contextmanager
def fixed(question: Question, parameters: Any) -> Iterator[None]:
    """Answers one question with these parameters."""
    place = question[:3]
    with questions():
        _fixed[place] = parameters
        try:
            yield
        finally:
            del _fixed[place]


def nearest(entries: list[Entry], kernel: str, key: Key, farthest: float = FARTHEST) -> Entry | None:
    reachable = [(distance, entry) for entry in entries if entry.kernel == kernel and (distance := _distance(entry.key, key)) <= farthest]
    return min(reachable, key=lambda pair: pair[0])[1] if reachable else None


def _distance(measured: Key, key: Key) -> float:
    total, there = 0.0, dict(measured)
    if there.keys() != dict(key).keys():
        return math.inf
    for name, value in key:
        if isinstance(value, str) or isinstance(there[name], str):
            if value != there[name]:
                return math.inf
        else:
            total += abs(math.log2(max(value, 1) / max(there[name], 1)))
    return total


@functools.lru_cache(maxsize=1024)
def _nearest(folder: str, kernel: str, key: Key, device: str) -> dict[str, Any] | None:
    found = nearest(entries(folder, device), kernel, key)
    return None if found is None else found.parameters


def entries(folder: str, device: str) -> list[Entry]:
    """All that was measured for a folder on a device."""
    merged: dict[tuple[str, Key], Entry] = {}
    for path in (packaged(folder, device), personal(folder, device)):
        for entry in read(path):
            merged[entry.kernel, entry.key] = entry
    return list(merged.values())


def forget() -> None:
    """What was read: files have changed."""
    _nearest.cache_clear()


def packaged(folder: str, device: str) -> Path:
    package = importlib.util.find_spec(f"vtkernels.ops.{folder}").origin
    return Path(package).parent / "tuned" / f"{slug(device)}.json"


def personal(folder: str, device: str) -> Path:
    return env.tuned_folder() / folder / f"{slug(device)}.json"


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def read(path: Path) -> list[Entry]:
    """The entries of a file; none, and a warning, where it cannot be understood."""
    try:
        found = json.loads(path.read_text())
        measured_with = str(found["triton"])
        entries = [_entry(entry) for entry in found["entries"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning(
            f"{path}: expected launch parameters as `vtkernels tune` writes them, got {type(error).__name__}: {error}; "
            "the launchers' own choices are used; measure anew with `vtkernels tune`, or delete the file"
        )
        return []
    if measured_with != triton_version():
        log.info(f"{path} was measured with Triton {measured_with}, this is {triton_version()}: `vtkernels tune` measures anew")
    return entries


def _entry(found: dict[str, Any]) -> Entry:
    numbers = float(found["milliseconds"]), float(found["default_milliseconds"])
    if not all(isinstance(value, (int, str)) for value in found["key"].values()):
        raise ValueError(f"a key holds numbers and names, not {found['key']}")
    return Entry(str(found["kernel"]), tuple(found["key"].items()), dict(found["parameters"]), *numbers)


def write(folder: str, device: str, measured: list[Entry], facts: dict[str, Any]) -> Path:
    """Put measurements into the device's file, beside those of other calls, and say where that is.

    The package's file; but the user's, where the package cannot be written to, or where the user has one: it would win.
    """
    path = personal(folder, device)
    if not path.exists() and _writable(packaged(folder, device).parents[1]):
        path = packaged(folder, device)
    merged = {(entry.kernel, entry.key): entry for entry in (*read(path), *measured)}
    rows = [entry._asdict() | {"key": dict(entry.key)} for _, entry in sorted(merged.items(), key=str)]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"device": device, "triton": triton_version(), **facts, "entries": rows}, indent=1) + "\n"
    # a reader sees the old file or the new one, whatever happens here
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        # mkstemp keeps the file from all others, who may share this installation
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    forget()
    return path


def _writable(folder: Path) -> bool:
    return os.access(folder / "tuned" if (folder / "tuned").exists() else folder, os.W_OK)


@functools.cache
def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"
