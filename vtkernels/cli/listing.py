"""`vtkernels list`: names, each with what there is to say in a line."""

import fnmatch
import sys
from collections.abc import Callable

from vtkernels._core.op import OPS


def show(what: str, pattern: str) -> int:
    described = {"models": _models, "recipes": _recipes, "datasets": _datasets, "ops": _ops}[what]()
    names = fnmatch.filter(described, pattern)
    if not names:
        print(f"vtkernels list: no {what} are called {pattern!r}; leave the pattern out for all", file=sys.stderr)
        return 1
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {described[name]()}".rstrip())
    if what == "recipes" and len(names) == 1:
        from vtkernels.recipes import commands

        print("\non one GPU and on eight:\n" + "\n".join(f"  {line}" for line in commands(names[0])))
    return 0


def _models() -> dict[str, Callable[[], str]]:
    import vtkernels

    return {name: lambda name=name: f"{vtkernels.model_info(name).parameters / 1e6:7.1f} M parameters" for name in vtkernels.list_models()}


def _recipes() -> dict[str, Callable[[], str]]:
    from vtkernels.recipes import describe_recipe, list_recipes

    return {name: lambda name=name: describe_recipe(name) for name in list_recipes()}


def _datasets() -> dict[str, Callable[[], str]]:
    from vtkernels.data import list_datasets
    from vtkernels.recipes import Data

    def sizes(name: str) -> str:
        known = Data(name=name).published()
        return f"{known.train_images:9,} images to train on, {known.valid_images:6,} to test on, {known.classes:4} classes" if known else ""

    return {name: lambda name=name: sizes(name) for name in list_datasets()}


def _ops() -> dict[str, Callable[[], str]]:
    import vtkernels

    def running(name: str) -> str:
        return ", ".join(backend for backend, reason in vtkernels.backends()[name].items() if reason is None)

    return {name: lambda name=name: f"runs here on: {running(name)}" for name in sorted(OPS)}
