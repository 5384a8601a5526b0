"""Recipes by name. A file of this folder without an underscore holds a family, and is found by itself."""

import fnmatch
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace

from vtkernels.recipes._errors import RecipeError, nearest
from vtkernels.recipes._recipe import Recipe

Function = Callable[[], Recipe]
_RECIPES: dict[str, Function] = {}


def recipe(function: Function) -> Function:
    """Make a function known by its name, which is then that of its recipe."""
    name = function.__name__
    if name in _RECIPES and _RECIPES[name].__module__ != function.__module__:
        raise RuntimeError(f"two families have a recipe {name!r}")

    @functools.wraps(function)
    def named() -> Recipe:
        return replace(function(), name=name)

    _RECIPES[name] = named
    return named


def _all_recipes() -> dict[str, Function]:
    package = importlib.import_module("vtkernels.recipes")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"vtkernels.recipes.{module.name}")
    return _RECIPES


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes, `smoke` first, then sorted; `pattern` as for file names: "swin_*"."""
    return sorted(fnmatch.filter(_all_recipes(), pattern), key=lambda name: (name != "smoke", name))


def describe_recipe(name: str) -> str:
    """The first line that its function says of itself."""
    return (inspect.getdoc(_find(name)) or "").partition("\n")[0]


def get_recipe(name: str) -> Recipe:
    """A recipe by name; change its fields with `dataclasses.replace`."""
    return _find(name)()


def _find(name: str) -> Function:
    recipes = _all_recipes()
    if name not in recipes:
        raise RecipeError(f"get_recipe: no recipe is called {name!r}; {nearest(name, recipes)}; `vtkernels list recipes` has all")
    return recipes[name]
