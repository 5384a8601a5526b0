"""The README's figures are those of the committed results."""

import json
import re
import sys
from pathlib import Path

import pytest

from vtkernels._core.op import OPS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def readme_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "readme_figures", raising=False)
    import readme_figures

    return readme_figures


def test_figures_agree_with_the_results(readme_figures):
    assert readme_figures.replaced(README, readme_figures.figures()) == README, "run python benchmarks/readme_figures.py"


def test_another_result_makes_other_figures(readme_figures, tmp_path, monkeypatch):
    for file in readme_figures.RESULTS.glob("*.json"):
        text = file.read_text()
        (tmp_path / file.name).write_text(text)
        if file.stem == "augmix":
            changed = json.loads(text)
            changed["rows"][0]["over"]["published"] += 10
            (tmp_path / file.name).write_text(json.dumps(changed))
    before = readme_figures.augmentation()
    monkeypatch.setattr(readme_figures, "RESULTS", tmp_path)
    assert readme_figures.augmentation() != before
    assert readme_figures.whole_models() in README


def test_no_ratio_is_quoted_outside_the_marks(readme_figures):
    before, _, rest = README.partition(readme_figures.BEGIN)
    told = before + rest.partition(readme_figures.END)[2]
    assert re.findall(r"\b\d+(?:\.\d+)?x\b(?! \d)|\b\d+ times|\d+ %", told) == []


def test_marks_must_be_there(readme_figures):
    with pytest.raises(SystemExit, match=r"README.md: expected <!-- measured: begin --> and, after it, <!-- measured: end -->"):
        readme_figures.replaced("no marks", "figures")


def test_the_table_of_backends_is_true():
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in README.splitlines() if line.startswith("| `")]
    told = {}
    header = ["cpu", "triton", "cuda", "reference"]
    for first, *cells in (row for row in rows if len(row) == 6):
        for name in re.findall(r"`(\w+)`", first):
            told[name] = {backend for backend, cell in zip(header, cells[1:], strict=True) if cell}
    # beside its own kernel `linear` lists torch's BLAS, which is no backend of ours
    assert told == {name: set(op.backend_names) - {"torch"} for name, op in OPS.items()}
