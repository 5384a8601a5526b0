"""Dataclasses as JSON and back, checked field by field. A field of several possible classes says which one as "kind"."""

import dataclasses
import json
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vtkernels.recipes._errors import RecipeError, nearest

KIND = "kind"
T = TypeVar("T")


def to_json(value: Any) -> str:
    return json.dumps(encoded(value), indent=2) + "\n"


def from_json(kind: type[T], text: str, source: str = "recipe") -> T:
    """`source` names the file in errors."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{source}: expected JSON, got text that is none ({error}); was the file written to the end?") from error
    try:
        return decoded(kind, content, "")
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def encoded(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {KIND: type(value).__name__, **fields}
    if isinstance(value, dict):
        return {name: encoded(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [encoded(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (types.UnionType, typing.Union) else (annotation,)


@cache
def hints(kind: type) -> dict[str, Any]:
    """Types of the fields."""
    every = typing.get_type_hints(kind)
    return {field.name: every[field.name] for field in dataclasses.fields(kind)}


def decoded(annotation: Any, value: Any, path: str) -> Any:
    alternatives = members(annotation)
    classes = [member for member in alternatives if dataclasses.is_dataclass(member)]
    if classes and isinstance(value, dict):
        return _record(_chosen(classes, value, path), value, path)
    for member in alternatives:
        if not dataclasses.is_dataclass(member):
            found, result = _plain(member, value, path)
            if found:
                return result
    expected = " or ".join(_told(member) for member in alternatives)
    raise RecipeError(f"{path or 'the file'} must be {expected}, got {json.dumps(value, default=str)[:80]}")


def _chosen(classes: list[type], value: dict[str, Any], path: str) -> type:
    name = value.get(KIND, classes[0].__name__ if len(classes) == 1 else None)
    for kind in classes:
        if kind.__name__ == name:
            return kind
    names = [kind.__name__ for kind in classes]
    hint = f"; {nearest(name, names)}" if isinstance(name, str) else ""
    raise RecipeError(f"{_inside(path, KIND)} must be {' or '.join(names)}, got {json.dumps(name)}{hint}")


def _record(kind: type, value: dict[str, Any], path: str) -> Any:
    known = hints(kind)
    for name in value:
        if name not in known and name != KIND:
            raise RecipeError(f"{_inside(path, name)} is no field of {kind.__name__}; {nearest(name, known)}")
    fields = {name: decoded(known[name], _with_kind(kind, name, entry), _inside(path, name)) for name, entry in value.items() if name != KIND}
    try:
        return kind(**fields)
    except ValueError as error:
        raise RecipeError(f"{path or 'the file'}: {error}") from error


def _with_kind(owner: type, name: str, value: Any) -> Any:
    """An object that does not name its class is of that of the field's default."""
    default = next(field.default for field in dataclasses.fields(owner) if field.name == name)
    unnamed = isinstance(value, dict) and KIND not in value and dataclasses.is_dataclass(default)
    return {KIND: type(default).__name__, **value} if unnamed else value


def _plain(annotation: Any, value: Any, path: str) -> tuple[bool, Any]:
    """Whether the value is of this type, and what it then is."""
    origin = typing.get_origin(annotation)
    if annotation in (None, type(None)):
        return value is None, None
    if origin is Literal:
        return value in typing.get_args(annotation) and not isinstance(value, bool), value
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool), value if not isinstance(value, int) else float(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if annotation in (bool, str):
        return isinstance(value, annotation), value
    if annotation is Path:
        return isinstance(value, str), Path(value) if isinstance(value, str) else None
    if origin is dict:
        entry = typing.get_args(annotation)[1]
        return isinstance(value, dict), {name: decoded(entry, part, _inside(path, name)) for name, part in value.items()} if isinstance(value, dict) else None
    if origin is tuple:
        return _tuple(typing.get_args(annotation), value, path)
    raise TypeError(f"{path}: fields of type {annotation} have no form in JSON")


def _tuple(entries: tuple[Any, ...], value: Any, path: str) -> tuple[bool, Any]:
    if not isinstance(value, list) or (entries[-1] is not Ellipsis and len(entries) != len(value)):
        return False, None
    kinds = [entries[0]] * len(value) if entries[-1] is Ellipsis else entries
    return True, tuple(decoded(kind, part, f"{path}[{index}]") for index, (kind, part) in enumerate(zip(kinds, value, strict=True)))


def _told(annotation: Any) -> str:
    """The type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, type(None)):
        return "null"
    if origin is Literal:
        return " or ".join(json.dumps(choice) for choice in arguments)
    if origin is tuple:
        return f"a list of {_told(arguments[0])}s" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
    if origin is dict or dataclasses.is_dataclass(annotation):
        return "an object"
    return {float: "a number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}.get(annotation, str(annotation))


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
