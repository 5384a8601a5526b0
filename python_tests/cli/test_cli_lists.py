"""`vtkernels list`, and commands that take no fields."""

import pytest

import vtkernels
from vtkernels import cli
from vtkernels._core.op import OPS
from vtkernels.data import list_datasets
from vtkernels.recipes import list_recipes


@pytest.mark.parametrize(
    ("what", "names"), [("models", vtkernels.list_models()), ("recipes", list_recipes()), ("datasets", list_datasets()), ("ops", sorted(OPS))]
)
def test_names_are_all_there(what, names, capsys):
    assert cli.main(["list", what]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(names)


def test_smoke_is_the_first():
    assert list_recipes()[0] == "smoke"


def test_patterns_choose(capsys):
    assert cli.main(["list", "recipes", "*_drloc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_recipes("*_drloc")
    assert "Swin-T on a small set" in "".join(lines)
    assert cli.main(["list", "models", "nothing*"]) == 1
    assert "no models are called 'nothing*'" in capsys.readouterr().err


def test_other_commands_refuse_what_they_do_not_know(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["list", "recipes", "--optim.lr", "1"])
    assert end.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_eval_takes_a_run(capsys):
    pytest.importorskip("tyro")
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", "--help"])
    assert end.value.code == 0
    assert "--corruptions" in capsys.readouterr().out
    assert cli.main(["eval", "no_such_model", "--data", "digits"]) == 2
    assert "no_such_model" in capsys.readouterr().err
