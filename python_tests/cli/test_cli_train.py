"""`vtkernels train`: fields by name, classes by kind, and errors before anything is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtkernels import cli
from vtkernels.cli.fields import changed, choices
from vtkernels.recipes import GSAM, SAM, Classification, Cosine, Drloc, PaddedCrop, Recipe, RecipeError, Steps, get_recipe

pytest.importorskip("tyro")
ROOT = Path(__file__).parents[2]
# as little as still goes through everything
SHORT = ["--train.epochs", "1", "--schedule.warmup", "0", "--data.fraction", "0.1", "--data.batch-size", "24"]


def fields(name: str, *arguments: str) -> Recipe:
    return changed(get_recipe(name), list(arguments), "vtkernels train")


def test_fields_have_their_types():
    recipe = fields("deit", "--optim.lr", "1e-3", "--optim.betas", "0.8", "0.9", "--data.path", "x", "--model.options", "dropout", "0.1", "distilled", "True")
    assert recipe.optim.lr == 1e-3
    assert recipe.optim.betas == (0.8, 0.9)
    assert recipe.data.path == Path("x")
    assert recipe.model.options == {"dropout": 0.1, "distilled": True}
    assert fields("deit") == get_recipe("deit")


def test_classes_are_chosen_before_their_fields():
    assert fields("smoke", "--sam", "gsam", "--sam.alpha", "0.4").sam == GSAM(alpha=0.4)
    assert fields("vit_sam", "--sam", "none").sam is None
    # the same class keeps its values
    assert fields("vit_sam", "--sam=SAM").sam == SAM(rho=0.2)
    assert fields("swin_t", "--schedule", "steps", "--augment.crop", "padded-crop").schedule == Steps()
    assert fields("swin_t", "--augment.crop", "padded_crop").augment.crop == PaddedCrop()


def test_tasks_are_wrapped_and_unwrapped():
    plain = get_recipe("swin_t").task
    wrapped = fields("swin_t", "--task", "drloc", "--task.weight", "0.1", "--task.inner.loss.smoothing", "0.2").task
    assert isinstance(wrapped, Drloc)
    assert (wrapped.weight, wrapped.smoothing) == (0.1, 0.2)
    assert fields("swin_t", "--task", "drloc").task == Drloc(inner=plain)
    assert fields("swin_t_drloc", "--task", "classification").task == plain
    assert isinstance(plain, Classification)


def test_options_of_a_model_or_a_set_come_and_go():
    assert fields("smoke", "--model.options.dropout", "0.1").model.options == {"init": "xavier", "dropout": 0.1}
    assert fields("deit", "--model.options.class-token=False").model.options == {"class_token": False}
    other = fields("shapes_detection", "--data.name", "voc", "--data.options.objects", "none", "--data.options.year", "2007")
    assert other.data.options == {"task": "detection", "year": 2007}
    assert fields("shapes_detection", "--data.options.objects", "5").data.options["objects"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sam", "gsma"], "--sam must be one of none, sam, .*did you mean gsam"),
        (["--mix"], "--mix must be followed by one of none, mixup"),
        (["--schedule", "none"], "--schedule must be one of cosine, .*got 'none'"),
    ],
)
def test_unknown_classes_are_told(arguments, message):
    with pytest.raises(RecipeError, match=message):
        fields("smoke", *arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["smoke", "--optim.lrr", "1"], "--optim.lr"),
        (["smoke", "--optim.lr", "fast"], "--optim.lr"),
        (["smoke", "--data.normalize", "sett"], "Expected one of"),
        (["smoke", "--train.precision", "half"], "precision must be one of float32, bfloat16, float16"),
        (["smok"], "did you mean smoke"),
        (["smoke", "--model.name", "vit_nan"], "did you mean vit_nano_patch4_32"),
        (["smoke", "--from", "x.json"], "only one of them"),
        ([], "expected a recipe"),
        (["--from", "nowhere.json"], "must be a recipe.json or a run's folder"),
        (["smoke", "--data.name", "cifar10"], "data.path must be the folder with the files of cifar10"),
        (["--resume"], "--resume must be given a run's folder"),
        (["--resume", "nowhere"], "--resume must be the folder of a run, got nowhere; `vtkernels train RECIPE` begins one"),
        (["--from", __file__], "expected JSON"),
        (["--from", sys.executable], "must be a recipe.json or a run's folder"),
    ],
)
def test_mistakes_end_before_training(arguments, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["train", *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    # boxes of the terminal's width break lines
    assert told.replace(" ", "") in "".join(capsys.readouterr().err.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []


def test_runs_that_could_go_on_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file in ("recipe.json", "last.pt"):
            (tmp_path / "runs" / name / file).touch()
    assert cli.main(["train", "--resume", "runs/thrid"]) == 2
    assert "got runs/thrid; there are runs/first, runs/second" in capsys.readouterr().err


def test_help_shows_types_defaults_and_words(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "swin_t_drloc", "--help"])
    assert end.value.code == 0
    told = "".join(capsys.readouterr().out.replace("│", "").split())
    for part in (
        "--optim.lrFLOAT",
        "learningrate,before`scaling`.(default:0.0005)",
        "--sam{none,sam,asam,gsam,looksam,friendlysam}",
        "--dry-run",
        "--resume[FOLDER]",
    ):
        assert part in told
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--help"])
    assert end.value.code == 0
    assert "swin_t_drloc" in capsys.readouterr().out


def test_every_choice_is_told():
    assert {choice.path for choice in choices(get_recipe("swin_t_drloc"))} == {
        *("model.trained", "data.relabel", "unlabelled", "augment", "augment.crop", "augment.policy", "mix", "erase", "task", "task.inner"),
        *("task.inner.loss", "optim", "optim.scaling", "sam", "schedule"),
    }


def test_a_dry_run_needs_no_data(capsys):
    assert cli.main(["train", "swin_t_drloc", "--dry-run"]) == 0
    plan = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    # 28.29 M with ten classes instead of a thousand, and the auxiliary head
    assert "28.58 M parameters, 4.49 G" in plan["model"]
    assert "101 epochs x 48 = 4,848 updates" in plan["steps"]
    assert "not measured" in plan["memory"]
    assert plan["rates"] == "1e-06 in epoch 0, 0.0009892 in epoch 20, 0.0009337 in epoch 50, 0.0007525 in epoch 100"


def test_a_dry_run_counts_processes(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert cli.main(["train", "deit", "--scale", "full", "--dry-run"]) == 0
    assert "1024 = 8 processes x 1 passes x 128" in capsys.readouterr().out


def test_smoke_trains_resumes_and_starts_again(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "smoke", *SHORT]) == 0
    assert "everything is in runs/smoke" in capsys.readouterr().out
    run = Path("runs/smoke")
    assert {"recipe.json", "log.jsonl", "last.pt", "best.pt", "report.html", "weights"} <= {path.name for path in run.iterdir()}
    saved = Recipe.load(run)
    assert (saved.train.epochs, saved.model.num_classes) == (1, 10)
    # its weights are evaluated as they stand there
    assert cli.main(["eval", "runs/smoke", "--limit", "50", "--out", "evaluation"]) == 0
    assert json.loads(Path("evaluation/evaluation.json").read_text())
    # on with a second epoch, in the same folder
    assert cli.main(["train", "--resume", "--no-report", "--train.epochs", "2"]) == 0
    epochs = [record["epoch"] for line in (run / "log.jsonl").read_text().splitlines() if (record := json.loads(line))["kind"] == "epoch"]
    assert epochs == [1, 2]
    # what the checkpoint does not fit is told
    assert cli.main(["train", "--resume", "--no-report", "--train.epochs", "3", "--data.batch-size", "12"]) == 2
    assert "batch_size 24 then and 12 now" in capsys.readouterr().err
    # anew from its recipe, beside it
    assert cli.main(["train", "--from", "runs/smoke/recipe.json", "--no-report", "--train.epochs", "1"]) == 0
    assert Path("runs/smoke-2/recipe.json").exists()
    assert "everything is in runs/smoke-2" in capsys.readouterr().out


@pytest.mark.slow
def test_torchrun_starts_it_as_it_stands(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29533", "-m", "vtkernels", "train", "smoke", *SHORT]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in runs/smoke") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke"]


def test_recipes_of_the_default_curve_need_no_option():
    assert isinstance(Recipe().schedule, Cosine)


def test_a_dry_run_of_a_run_trains_nothing(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(get_recipe("smoke").json())
    assert cli.main(["train", "--resume", str(tmp_path), "--dry-run"]) == 0
    assert "vit_nano_patch4_32" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--resume", str(tmp_path), "--scale", "tiny"])
    assert end.value.code == 2 and "leave out --folder and --scale" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]
