"""`vtkernels noisy-student`: what is asked for, what is printed, how it goes on, and what it refuses."""

import os
import signal

import pytest
from plans import short_plan

from vtkernels.cli import main
from vtkernels.recipes import SelfTraining
from vtkernels.recipes._json import to_json
from vtkernels.train import Observer

FIELDS = {
    "--data.fraction": "0.05",
    "--data.size": "16",
    "--unlabelled.ratio": "2",
    "--unlabelled.per-class": "40",
    "--unlabelled.confidence": "0",
    "--train.epochs": "1",
    "--train.eval-every": "1",
    "--train.log-every": "1",
    "--schedule.warmup": "0",
}


class Stop(Observer):
    def on_step(self, record):
        os.kill(os.getpid(), signal.SIGTERM)


def test_from_a_recipe_to_students_and_on_after_a_stop(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vtkernels.cli.noisy_student._observers", lambda folder: [Stop()])
    folder = tmp_path / "run"
    asked = ["noisy-student", "noisy_student_digits", *sum(FIELDS.items(), ()), "--cycles", "1", "--folder", str(folder)]
    assert main(asked) == 128 + signal.SIGTERM
    assert f"To go on: vtkernels noisy-student --resume {folder}" in capsys.readouterr().err
    # the same command would begin anew
    assert main(asked) == 2
    assert f"--folder must hold nothing yet, got {folder}; --resume" in capsys.readouterr().err
    monkeypatch.setattr("vtkernels.cli.noisy_student._observers", lambda folder: [])
    assert main(["noisy-student", "--resume", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "teacher    vit_nano_patch4_32: top1" in printed
    assert "cycle-1    vit_nano_patch4_32: top1" in printed
    assert "of 1,370 images, whose confident labels are right in" in printed
    assert SelfTraining.load(folder).recipe.unlabelled.ratio == 2


def test_a_plan_of_published_sizes_without_data(capsys):
    asked = ["noisy-student", "noisy_student_b0", "--students", "efficientnet_b0", "efficientnet_b1", "--cycles", "2", "--data.size", "64", "--dry-run"]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert printed.count("steps      700 epochs x 312 = 218,400 updates") == 3
    assert "efficientnet_b1, 7.79 M parameters" in printed
    assert "and 1 times as many without labels" in printed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["noisy_studnt"], "no recipe is called 'noisy_studnt'; did you mean noisy_student"),
        (["smoke", "--dry-run"], "task must be a noisy student"),
        (["noisy_student_b1", "--students", "efficientnet_b0", "--dry-run"], "--students must be at least as large as their teachers: efficientnet_b1"),
        (["noisy_student_b1", "--cycles", "0", "--dry-run"], "--cycles must be at least 1"),
        (["--resume", "nowhere"], "--resume must be the folder of a noisy student, got nowhere"),
        (["noisy_student_b1"], "data.path must be the folder with the files of imagenet"),
    ],
)
def test_what_cannot_be_is_told(asked, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["noisy-student", *asked]) == 2
    assert message in capsys.readouterr().err


def test_help_names_the_recipes(capsys):
    assert main(["noisy-student", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "noisy_student_svhn" in printed
    assert "--students" in printed


def test_what_is_gone_on_with_is_not_changed(tmp_path, capsys):
    (tmp_path / "plan.json").write_text(to_json(short_plan(cycles=1)))
    assert main(["noisy-student", "--resume", str(tmp_path), "--dry-run"]) == 0
    assert "noisy_student_digits-1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["noisy-student", "--resume", str(tmp_path), "--cycles", "5"])
    assert end.value.code == 2 and "leave out --cycles" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
