"""Errors of recipes name the field to change."""

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from vtkernels._core.check import fail


class RecipeError(ValueError):
    """A recipe that cannot be trained as it is; the message names the field."""


def refuse(field: str, expected: str, got: Any, hint: str = "") -> NoReturn:
    fail("recipe", field, expected, got, hint or f"change it with --{field.lstrip('-').replace('_', '-')}", RecipeError)


@contextmanager
def named(field: str) -> Iterator[None]:
    """What refuses its values in here is told with the recipe's field that they came from."""
    try:
        yield
    except RecipeError:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise RecipeError(f"recipe: {field}: {error}") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at what was meant."""
    names = sorted(names)
    begun = [known for known in names if name and known.startswith(name)]
    near = begun[:3] or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:12])}{' and others' if len(names) > 12 else ''}"


def check_between(field: str, value: float, least: float = -math.inf, most: float = math.inf, *, open_below: bool = False) -> None:
    """NaN lies between nothing."""
    if not (least < value if open_below else least <= value) or not value <= most:
        bounds = f"{'above' if open_below else 'at least'} {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        refuse(field, f"be {bounds}", value)
