"""The documentation as a site: it builds without a warning, and what it says of names is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from optional import peer

import vtkernels
from vtkernels._core.op import OPS
from vtkernels.analysis import ANALYSES
from vtkernels.recipes import list_recipes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    peer("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def page(site: Path, name: str) -> str:
    return re.sub(r"<[^>]+>", "", (site / name / "index.html").read_text())


def test_each_op_has_its_story_and_its_definition(site):
    for folder in {op.package.rpartition(".")[2] for op in OPS.values()}:
        text = page(site, f"ops/{folder}")
        for part in ("When not to use it", "Limits", "What .*computes?", "The definition"):
            assert re.search(part, text), f"{folder} lacks {part!r}"


def test_generated_tables_are_whole(site):
    recipes, models, analyses = page(site, "recipes"), page(site, "models"), page(site, "analysis")
    assert not [name for name in list_recipes() if name not in recipes]
    assert not [name for name in vtkernels.list_models() if name not in models]
    assert not [name for name in ANALYSES if name not in analyses]


def test_links_of_the_site_stay_inside(site):
    for html in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?]+)', html.read_text()):
            if re.match(r"https?:|mailto:|data:|/", link):
                continue
            assert (html.parent / link).exists(), f"{html.relative_to(site)} links to {link}"


def test_every_op_has_a_page():
    assert {path.stem for path in DOCS.glob("ops/*.md")} == {op.package.rpartition(".")[2] for op in OPS.values()}


def test_every_data_set_has_its_layout():
    told = re.findall(r"`([\w-]+)`", "".join(line.split("|")[1] for line in (DOCS / "data.md").read_text().splitlines() if line.startswith("| `")))
    assert sorted(told) == vtkernels.data.list_datasets()


def test_recipes_that_pages_name_exist():
    for document in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for name in re.findall(r"vtkernels train (\w+)", document.read_text()):
            assert name in (*list_recipes(), "RECIPE"), f"{document.name} trains {name}"


def test_messages_of_the_troubleshooting_are_the_librarys():
    sources = "".join(path.read_text() for path in [*ROOT.glob("vtkernels/**/*.py"), ROOT / "setup.py"])
    # a message that is put together: its parts must be there
    rows = [line.split("|")[1] for line in (DOCS / "troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    parts = [part.strip() for row in rows for quoted in re.findall("`([^`]+)`", row) for part in re.split(r"\.\.\.|[:()]| must ", quoted)]
    assert len(rows) > 10
    assert not [part for part in parts if len(part) > 3 and part != "Illegal instruction" and part not in sources]
