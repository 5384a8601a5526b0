"""docs/coverage.md leads from each technique of the sources to code that is there."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import vtkernels
from vtkernels.data.datasets._registry import _all_datasets
from vtkernels.models._registry import _all_models
from vtkernels.recipes import _registry as recipes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coverage.md"
LINK = re.compile(r"\[(recipe|model|data set)? ?`([\w.-]+)`\]\(([^)]+)\)")
# how many techniques each talk, and each list, names
ROWS = [32, 23, 35, 21, 12, 14, 10]


def sections() -> list[list[tuple[str, str]]]:
    """Of each table: (what, code) of its rows."""
    tables = re.findall(r"\| what \| code \|\n\| --- \| --- \|\n((?:\|.*\n)+)", PAGE.read_text())
    return [[tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()] for table in tables]


def named(kind: str, name: str) -> object:
    if kind == "recipe":
        return recipes._find(name)
    if kind == "model":
        return _all_models()[name][0]
    if kind == "data set":
        return _all_datasets()[name]
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def test_every_technique_has_a_row():
    assert [len(rows) for rows in sections()] == ROWS


@pytest.mark.parametrize(("what", "code"), [row for rows in sections() for row in rows])
def test_row_leads_to_code_or_says_why_not(what, code):
    links = LINK.findall(code)
    assert links or re.match(r"(context|not built)\b", code), f"{what}: expected links, context or not built, got {code!r}"
    for kind, name, target in links:
        found = inspect.unwrap(named(kind, name))
        file = Path(found.__file__ if inspect.ismodule(found) else inspect.getsourcefile(found))
        assert (PAGE.parent / target).resolve() == file.resolve(), f"{what}: {name} is in {file}"


def test_what_is_public_is_meant_by_its_public_name():
    assert named("", "vtkernels.losses.CenterLoss") is vtkernels.losses.CenterLoss
    with pytest.raises(AttributeError):
        named("", "vtkernels.losses.NoSuchLoss")
