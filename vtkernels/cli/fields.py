"""The fields of a recipe as options of the command line.

`--optim.lr 5e-4` changes a field. A field of several possible classes is chosen by the name of the class first, and by "none" where it may
be left out: `--sam gsam --sam.alpha 0.4`, `--mix none`, `--task drloc`. Options of a single model or data set are named after it, and taken
away by "none": `--model.options.dropout 0.1`, `--data.options.objects none`.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from vtkernels.recipes import Recipe, RecipeError
from vtkernels.recipes._errors import nearest
from vtkernels.recipes._json import hints, members


class Choice(NamedTuple):
    """A field that may hold one of several classes."""

    path: str
    kinds: dict[str, type | None]


def changed(recipe: Recipe, arguments: list[str], prog: str) -> Recipe:
    """The recipe with what the options say. Errors and --help end the program, as usual."""
    try:
        import tyro
    except ImportError:
        raise RecipeError("expected tyro to be installed, got no such package; try pip install 'vtkernels[train]'") from None
    recipe, rest = _chosen(recipe, arguments)
    told = [f"  --{_dashed(choice.path)} {{{','.join(choice.kinds)}}}" for choice in choices(recipe)]
    description = "\n".join(["Fields of the recipe. Some hold one of several things, to be chosen before their own fields:", "", *told])
    # the classes have been chosen: no subcommands for them
    return tyro.cli(Recipe, default=recipe, args=rest, prog=prog, description=description, config=(tyro.conf.AvoidSubcommands,))


def choices(value: Any, path: str = "") -> Iterator[Choice]:
    """Of a recipe as it is now: another class may have other fields with a choice."""
    for name, annotation in hints(type(value)).items():
        inner = f"{path}.{name}" if path else name
        classes = [member for member in members(annotation) if dataclasses.is_dataclass(member)]
        optional = type(None) in members(annotation)
        if len(classes) > 1 or (classes and optional):
            yield Choice(inner, {**({"none": None} if optional else {}), **{kind.__name__.lower(): kind for kind in classes}})
        if dataclasses.is_dataclass(getattr(value, name)):
            yield from choices(getattr(value, name), inner)


def tables(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields whose entries nobody knows but the model or the data set that takes them."""
    for name, annotation in hints(type(value)).items():
        inner, now = f"{path}.{name}" if path else name, getattr(value, name)
        if typing.get_origin(annotation) is dict:
            yield inner, now
        elif dataclasses.is_dataclass(now):
            yield from tables(now, inner)


def _chosen(recipe: Recipe, arguments: list[str]) -> tuple[Recipe, list[str]]:
    """What is left of the arguments when the classes are chosen, and entries that are new or taken away."""
    rest, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        option, given, value = argument.partition("=")
        path = option.removeprefix("--").replace("-", "_") if option.startswith("--") else ""
        choice = {choice.path: choice for choice in choices(recipe)}.get(path)
        if choice is None:
            field, _, entry = path.rpartition(".")
            table, told = dict(tables(recipe)).get(field), [value] if given else waiting[:1]
            if table is not None and told and (entry not in table or told == ["none"]):
                waiting = waiting if given else waiting[1:]
                recipe = _with_entries(recipe, field.split("."), _changed_entries(table, entry, told[0]))
                continue
            rest.append(argument)
            continue
        if not given and (not waiting or waiting[0].startswith("-")):
            raise RecipeError(f"{option} must be followed by one of {', '.join(choice.kinds)}")
        value = value if given else waiting.pop(0)
        kind = value.lower().replace("-", "").replace("_", "")
        if kind not in choice.kinds:
            raise RecipeError(f"{option} must be one of {', '.join(choice.kinds)}, got {value!r}; {nearest(kind, choice.kinds)}")
        recipe = _with_kind(recipe, choice.path.split("."), choice.kinds[kind])
    return recipe, rest


def _changed_entries(table: dict[str, Any], entry: str, text: str) -> dict[str, Any]:
    if text == "none":
        return {name: value for name, value in table.items() if name != entry}
    try:
        value = json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        value = text
    return table | {entry: value if isinstance(value, bool | int | float) else text}


def _with_entries(value: Any, path: list[str], table: dict[str, Any]) -> Any:
    name, *further = path
    return dataclasses.replace(value, **{name: _with_entries(getattr(value, name), further, table) if further else table})


def _with_kind(value: Any, path: list[str], kind: type | None) -> Any:
    """A new object of that class at the path; one that is of it already stays as it is."""
    name, *further = path
    now = getattr(value, name)
    if further:
        return dataclasses.replace(value, **{name: _with_kind(now, further, kind)})
    if (kind is None and now is None) or (kind is not None and type(now) is kind):
        return value
    return dataclasses.replace(value, **{name: _new(kind, now)})


def _new(kind: type | None, now: Any) -> Any:
    """With defaults; something that wraps another takes up what was there, or leaves what it wrapped."""
    if kind is None:
        return None
    if isinstance(inner := getattr(now, "inner", None), kind):
        return inner
    annotation = hints(kind).get("inner")
    return kind(inner=now) if now is not None and annotation is not None and isinstance(now, members(annotation)) else kind()


def _dashed(path: str) -> str:
    return path.replace("_", "-")
