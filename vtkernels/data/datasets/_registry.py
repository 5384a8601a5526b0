"""Data sets by name. Modules register theirs when they are imported, which the first question does."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtkernels.data.datasets._base import ImageDataset

Build = Callable[..., ImageDataset]
_DATASETS: dict[str, Build] = {}


def register(*names: str) -> Callable[[Build], Build]:
    """Make `build(name, split, ...)` known under some names."""

    def remember(build: Build) -> Build:
        for name in names:
            if name in _DATASETS:
                raise RuntimeError(f"two data sets are called {name!r}")
            _DATASETS[name] = build
        return build

    return remember


def _all_datasets() -> dict[str, Build]:
    package = importlib.import_module("vtkernels.data.datasets")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"vtkernels.data.datasets.{module.name}")
    return _DATASETS


def list_datasets() -> list[str]:
    """Names that `create_dataset` takes."""
    return sorted(_all_datasets())


def create_dataset(name_or_path: str | Path, split: str = "train", *, root: str | Path | None = None, **options: Any) -> ImageDataset:
    """A data set from files on this machine; nothing is downloaded.

    Args:
        name_or_path: a name of `list_datasets()`, or a folder of the layout <split>/<class>/<image>.
        split: "train", "test", "val", ...; an unknown one is answered with those the set has.
        root: the folder that holds the set's files as published. `digits` and `shapes` need none.
        options: of the single set, such as `size` of "shapes", `domain` of "domainnet", `corruption` and `severity` of "imagenet-c".

    Returns:
        a map-style set of pairs (uint8 array [H, W, C], target) with `.classes`, `.targets` and `.statistics`.
    """
    datasets, name = _all_datasets(), str(name_or_path)
    if name not in datasets:
        if not Path(name).is_dir():
            close = difflib.get_close_matches(name, datasets, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "list_datasets() has all names"
            raise ValueError(f"create_dataset: name_or_path: expected a data set's name or a folder, got {name!r}; {hint}")
        if root is not None:
            raise ValueError(f"create_dataset: root: expected None beside a folder, got {str(root)!r}; name the data set, or leave root away")
        name, root = "folder", name
    build = datasets[name]
    known = inspect.signature(build).parameters
    arguments = {"root": root, **options} if root is not None or "root" in known else options
    unknown = sorted(set(arguments) - set(known))
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        own = ", ".join(list(known)[2:])
        raise TypeError(f"create_dataset: {name} has no option {', '.join(unknown)}; it has {own}")
    return build(name, split, **arguments)
