"""Who is told of a run: the terminal, a file of records, TensorBoard, and the report at the end."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtkernels.train.records import Observer

# name -> module, loaded when it is asked for: each needs packages of its own
_LAZY_NAMES = {"JsonLines": "jsonl", "Progress": "progress", "Report": "report", "TensorBoard": "tensorboard", "read_log": "jsonl"}

__all__ = [*sorted(_LAZY_NAMES), "usual_observers"]


def usual_observers(folder: Path | str | None, *, progress: bool = True, tensorboard: bool = True, report: bool = True) -> "list[Observer]":
    """Progress on the terminal, and with a folder log.jsonl, tensorboard/ and report.html in it."""
    chosen = [("Progress", progress, ())]
    if folder is not None:
        # the report reads what JsonLines wrote
        chosen += [("JsonLines", True, (folder,)), ("TensorBoard", tensorboard, (folder,)), ("Report", report, (folder,))]
    return [__getattr__(name)(*given) for name, wanted, given in chosen if wanted]


def __getattr__(name: str) -> Any:
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f"vtkernels.train.observers.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module 'vtkernels.train.observers' has no attribute {name!r}")
