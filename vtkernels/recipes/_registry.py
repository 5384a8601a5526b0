"""Recipes by name. A file of this folder without an underscore holds a family, and is found by itself.

A recipe may leave one thing open, such as the data set: `swin_t_drloc` is on the usual one, `swin_t_drloc-sketch` on another.
"""

import fnmatch
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import replace

from vtkernels.recipes._errors import RecipeError, nearest
from vtkernels.recipes._recipe import Recipe

Function = Callable[..., Recipe]
_RECIPES: dict[str, Function] = {}
# what may follow the name of a recipe, after a hyphen
_CHOICES: dict[str, tuple[str, ...]] = {}


def recipe(function: Function | None = None, *, choices: Iterable[str] = ()) -> Function:
    """Make a function known by its name, which is then that of its recipe. `choices` are what its one argument, which has a default, may be."""
    if function is None:
        return functools.partial(recipe, choices=tuple(choices))
    name = function.__name__
    if name in _RECIPES and _RECIPES[name].__module__ != function.__module__:
        raise RuntimeError(f"two families have a recipe {name!r}")

    @functools.wraps(function)
    def named(*choice: str) -> Recipe:
        return replace(function(*choice), name="-".join((name, *choice)))

    _RECIPES[name], _CHOICES[name] = named, tuple(choices)
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
    told = (inspect.getdoc(_find(name)) or "").partition("\n")[0]
    return f"{told} Also {name}-..: {', '.join(_CHOICES[name])}." if _CHOICES.get(name) else told


def choices_of(name: str) -> tuple[str, ...]:
    """What may follow the recipe's name, after a hyphen."""
    _find(name)
    return _CHOICES.get(name, ())


def get_recipe(name: str) -> Recipe:
    """A recipe by name; change its fields with `dataclasses.replace`."""
    return _find(name)()


def _find(name: str) -> Function:
    recipes = _all_recipes()
    base, hyphen, choice = name.partition("-")
    if hyphen and _CHOICES.get(base):
        if choice not in _CHOICES[base]:
            raise RecipeError(f"get_recipe: {base} is not for {choice!r}; {nearest(choice, _CHOICES[base])}")
        return functools.wraps(recipes[base])(lambda: recipes[base](choice))
    if name not in recipes:
        raise RecipeError(f"get_recipe: no recipe is called {name!r}; {nearest(name, recipes)}; `vtkernels list recipes` has all")
    return recipes[name]
