"""`vtkernels noisy-student`: a teacher, its pseudo-labels, and students of them, each the next one's teacher."""

import argparse
import os
import sys
from pathlib import Path

from vtkernels.cli.fields import changed
from vtkernels.recipes import Recipe, RecipeError, SelfTraining, describe_recipe, get_recipe, list_recipes, plan, scaled, self_train
from vtkernels.train import CheckpointError, Interrupted, LoaderDied, NonFiniteLoss, Observer, distributed

USAGE = """vtkernels noisy-student RECIPE [options] [--FIELD VALUE ...]
       vtkernels noisy-student --from recipe.json [options] [--FIELD VALUE ...]
       vtkernels noisy-student --resume FOLDER"""
RUNS = Path("runs")


def noisy_student(arguments: list[str]) -> int:
    try:
        return _noisy_student(arguments)
    except (RecipeError, CheckpointError, NonFiniteLoss, LoaderDied, FileExistsError, ImportError) as error:
        print(f"vtkernels noisy-student: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vtkernels noisy-student", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true", help="this, and with a recipe all its fields")
    parser.add_argument("--from", dest="source", metavar="FILE", help="a recipe.json, instead of a recipe's name")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with what was begun there")
    parser.add_argument("--folder", type=Path, help=f"of all runs; default: {RUNS}/RECIPE")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny: the recipe's smallest model on digits, for ten epochs")
    parser.add_argument("--cycles", type=int, default=3, help="students, one after the other")
    parser.add_argument("--students", nargs="+", default=(), metavar="MODEL", help="their models, each at least as large as its teacher; default: the recipe's")
    parser.add_argument("--teacher", metavar="WEIGHTS", help="of a teacher that is there: a run's folder, a file, or timm:NAME; default: trains one")
    parser.add_argument("--teacher-model", metavar="MODEL", help="the teacher's, if not the recipe's or told by its weights")
    ways = ("student", "imagenet", "half", "none")
    parser.add_argument("--teacher-normalize", choices=ways, help="how the teacher's images were normalised, if its weights do not tell: as the student's, ...")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, and how much memory and time that takes; needs no data")
    return parser


def _noisy_student(arguments: list[str]) -> int:
    name, arguments = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else (None, arguments)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.help and not name:
        parser.print_help()
        print("\nrecipes:\n" + "\n".join(f"  {recipe:22} {describe_recipe(recipe)}" for recipe in list_recipes("noisy_student*")))
        return 0
    if len([what for what in (name, options.source, options.resume) if what is not None]) != 1:
        parser.error("expected a recipe, --from FILE or --resume FOLDER, and only one of them; --help names all recipes")
    if options.resume is not None:
        changes = [f"--{name.replace('_', '-')}" for name, value in vars(options).items() if value != parser.get_default(name)]
        if odd := [*rest, *(option for option in changes if option not in ("--resume", "--dry-run"))]:
            parser.error(f"--resume takes what was asked for before; leave out {' '.join(odd)}")
        asked = SelfTraining.load(Path(options.resume))
        return _told(asked) if options.dry_run else _run(asked, Path(options.resume))
    if options.help:
        parser.print_help()
        rest = ["--help"]
    recipe = get_recipe(name) if name else Recipe.load(options.source)
    recipe = changed(scaled(recipe, options.scale), rest, f"vtkernels noisy-student {name or '--from ' + options.source}")
    given = {name: getattr(options, name) for name in ("cycles", "teacher", "teacher_model", "teacher_normalize")}
    asked = SelfTraining(recipe=recipe, students=tuple(options.students), **given)
    if options.dry_run:
        return _told(asked)
    folder = options.folder or RUNS / recipe.name
    if (folder / "plan.json").exists():
        raise RecipeError(f"--folder must hold nothing yet, got {folder}; --resume {folder} goes on with it, or take another --folder")
    return _run(asked, folder)


def _told(asked: SelfTraining) -> int:
    asked.check()
    world = int(os.environ.get("WORLD_SIZE", 1))
    if asked.teacher is None:
        print(plan(asked.of_teacher(), world))
    for cycle in range(1, asked.cycles + 1):
        print(f"\n{plan(asked.of_student(cycle, Path()), world)}")
    return 0


def _run(asked: SelfTraining, folder: Path) -> int:
    try:
        with distributed.processes() as device:
            rows = self_train(asked, folder, observers=_observers, device=device)
            if distributed.rank() == 0:
                _print(rows, asked.recipe.train.monitor)
                print(f"everything is in {folder}")
    except Interrupted as error:
        print(f"\nvtkernels noisy-student: stopped; what is done is kept. To go on: vtkernels noisy-student --resume {folder}", file=sys.stderr)
        return int(error.code)
    return 0


def _print(rows: list[dict], monitor: str) -> None:
    for row in rows:
        about = row.get("pseudo_labels")
        told = f"; taught by {about['used']:,} of {about['pool']:,} images" if about else ""
        right = f", whose confident labels are right in {about['right']:.1%}" if about and about.get("right") is not None else ""
        print(f"{row['stage']:10} {row['model']}: {monitor} {row['metrics'][monitor]:.4g}{told}{right}")


def _observers(folder: Path) -> list[Observer]:
    from vtkernels.train.observers import usual_observers

    return usual_observers(folder)
