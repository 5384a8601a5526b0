"""The documents promise only what is there."""

import re
import shlex
from pathlib import Path

import pytest
from optional import peer

from vtkernels import cli
from vtkernels.analysis import analysis
from vtkernels.cli.fields import changed
from vtkernels.cli.train import _parser
from vtkernels.evaluation import EvaluationOptions
from vtkernels.recipes import get_recipe, scaled

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/*.md", "vtkernels/*/README.md", "vtkernels/ops/*/README.md")
    for path in sorted(ROOT.glob(pattern))
]
BACKENDS = (ROOT / "docs" / "backends.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for document in DOCUMENTS for block in blocks(document.read_text(), "bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands() if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)", " ".join(path.read_text() for path in DOCUMENTS)))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_scripts_exist():
    scripts = {words[1] for words in commands() if words[0] == "python" and words[1].endswith(".py")}
    scripts |= set(re.findall(r"\$\(PY\) (\S+\.py)", (ROOT / "Makefile").read_text()))
    assert scripts
    for script in scripts:
        assert (ROOT / script).exists()


def test_subcommands_exist(capsys):
    named = {tuple(words[1:2]) for words in commands() if words[0] == "vtkernels"}
    assert {("info",), ("check",)} <= named
    for (name,) in named:
        # argparse leaves by itself, the commands that take a recipe's fields return
        try:
            assert cli.main([name, "--help"]) == 0
        except SystemExit as end:
            assert end.code == 0


@pytest.mark.parametrize("words", [words for words in commands() if words[:1] == ["vtkernels"] and words[1:2] != []], ids=" ".join)
def test_options_of_commands_are_understood(words):
    """Without doing what they say."""
    _, name, *arguments = words
    if name not in ("train", "eval", "analyze") or not arguments or arguments[0].isupper():
        return
    if name == "train":
        options, rest = _parser().parse_known_args(arguments)
        if options.source is None and options.resume is None:
            recipe, *rest = rest
            changed(scaled(get_recipe(recipe), options.scale), rest, "vtkernels train")
        return
    tyro = peer("tyro")
    chosen = EvaluationOptions if name == "eval" else analysis(arguments.pop(0)).Options
    if not arguments[0].startswith("-"):
        arguments.insert(0, "--model")
    tyro.cli(chosen, args=arguments)


def test_environment_variables_are_told():
    sources = [*ROOT.glob("vtkernels/**/*.py"), *ROOT.glob("csrc/**/*.cpp"), ROOT / "setup.py"]
    read = {name for path in sources for name in re.findall(r"VTKERNELS_[A-Z]+", path.read_text())}
    told = set(re.findall(r"VTKERNELS_[A-Z]+", BACKENDS))
    assert read == told


@pytest.mark.parametrize(
    ("document", "number"),
    [pytest.param(path, i, id=f"{path.relative_to(ROOT)}-{i}") for path in DOCUMENTS for i in range(len(blocks(path.read_text(), "python")))],
)
def test_examples_run(document, number):
    exec(compile(blocks(document.read_text(), "python")[number], f"{document.name} example {number}", "exec"), {})
