"""`vtkernels train`: a recipe and its fields on the command line, and what becomes of them."""

import argparse
import os
import sys
from pathlib import Path

from vtkernels._core import heap
from vtkernels.cli.fields import changed
from vtkernels.recipes import Recipe, RecipeError, build, commands, describe_recipe, get_recipe, list_recipes, scaled
from vtkernels.train import CheckpointError, Interrupted, LoaderDied, NonFiniteLoss, Observer, Trainer, distributed

USAGE = """vtkernels train RECIPE [options] [--FIELD VALUE ...]
       vtkernels train --from runs/x/recipe.json [options] [--FIELD VALUE ...]
       vtkernels train --resume [runs/x]"""
RUNS = Path("runs")
# files, and folders of sharded runs
CHECKPOINTS = ("last.pt", "previous.pt", "last", "previous")


def train(arguments: list[str]) -> int:
    try:
        return _train(arguments)
    except (RecipeError, CheckpointError, NonFiniteLoss, LoaderDied, FileExistsError, ImportError) as error:
        print(f"vtkernels train: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        # the trainer has said how to go on
        return int(error.code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vtkernels train", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true", help="this, and with a recipe all its fields")
    parser.add_argument("--from", dest="source", metavar="FILE", help="a recipe.json, or the folder of a run, instead of a recipe's name")
    parser.add_argument("--resume", nargs="?", const="", metavar="FOLDER", help=f"go on with a run; without a folder, the latest one in {RUNS}/")
    parser.add_argument("--folder", type=Path, help=f"of the run; default: {RUNS}/RECIPE, or with a number where that exists")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny: the recipe's smallest model on digits, for ten epochs")
    parser.add_argument("--no-report", action="store_true", help="leave out report.html and its plots")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, and how much memory and time that takes; needs no data")
    return parser


def _train(arguments: list[str]) -> int:
    # a positional argument of argparse would take the values of fields for itself
    name, arguments = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else (None, arguments)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.help and not name and not options.source:
        parser.print_help()
        width = max(map(len, list_recipes()))
        print("\nrecipes:\n" + "\n".join(f"  {recipe:{width}}  {describe_recipe(recipe)}" for recipe in list_recipes()))
        parser.exit()
    given = [what for what in (name, options.source, options.resume) if what is not None]
    if len(given) != 1:
        parser.error("expected a recipe, --from FILE or --resume [FOLDER], and only one of them; `vtkernels list recipes` names all")
    if options.resume is not None:
        if options.folder is not None or options.scale != "full":
            parser.error("--resume goes on where the run is and as it is; leave out --folder and --scale")
        return _resume(options, rest)
    if options.help:
        parser.print_help()
        if name:
            print("\nof this recipe, on one GPU and on eight:\n" + "\n".join(f"  {line}" for line in commands(name)) + "\n")
        rest = ["--help"]
    recipe = get_recipe(name) if name else Recipe.load(options.source)
    recipe = changed(scaled(recipe, options.scale), rest, f"vtkernels train {name or '--from ' + options.source}")
    if options.dry_run:
        return _told(recipe)
    with distributed.processes() as device:
        folder = distributed.gathered(options.folder or _free_folder(recipe.name))[0]
        return _fit(build(recipe, folder=folder, observers=_observers(folder, options), device=device))


def _told(recipe: Recipe) -> int:
    from vtkernels.recipes import plan

    print(plan(recipe, int(os.environ.get("WORLD_SIZE", 1))))
    return 0


def _resume(options: argparse.Namespace, rest: list[str]) -> int:
    folder = Path(options.resume) if options.resume else _latest_run()
    if not (folder / "recipe.json").is_file():
        there = ", ".join(map(str, sorted(_runs())[:8]))
        raise RecipeError(f"--resume must be the folder of a run, got {folder}; " + (f"there are {there}" if there else "`vtkernels train RECIPE` begins one"))
    # more epochs, another monitor: what does not fit the checkpoint is told by the trainer
    recipe = changed(Recipe.load(folder), rest, f"vtkernels train --resume {folder}")
    if options.dry_run:
        return _told(recipe)
    with distributed.processes() as device:
        trainer = build(recipe, folder=folder, observers=_observers(folder, options), device=device)
        try:
            trainer.resume()
        except (ValueError, RuntimeError, KeyError) as error:
            raise RecipeError(f"{folder}: the checkpoint must fit the recipe, got: {error}; leave out what was changed, or begin a new run") from error
        return _fit(trainer)


def _fit(trainer: Trainer) -> int:
    if trainer.device.type == "cpu":
        heap.keep()
    history = trainer.fit()
    if trainer.is_main:
        best = history.best
        metrics = best and (best.ema or best.valid)
        told = f"; best {trainer.settings.monitor} {metrics[trainer.settings.monitor]:.4g} after epoch {best.epoch}" if metrics else ""
        failed = trainer.reporter.failed
        # what was said of it when it happened may have scrolled away
        missing = f", but for what {' and '.join(failed)} would have written: failed, see above" if failed else ""
        print(f"{history.stopped or 'trained to the end'}{told}; everything is in {trainer.folder}{missing}")
    return 0


def _observers(folder: Path, options: argparse.Namespace) -> list[Observer]:
    from vtkernels.train.observers import usual_observers

    return usual_observers(folder, report=not options.no_report)


def _free_folder(name: str) -> Path:
    folder, number = RUNS / name, 1
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder


def _latest_run() -> Path:
    found = _runs()
    if not found:
        raise RecipeError(f"--resume must be given a run's folder where {RUNS}/ holds none, got nothing; `vtkernels train RECIPE` begins one")
    return max(found, key=lambda folder: (folder / "recipe.json").stat().st_mtime)


def _runs() -> list[Path]:
    return [path.parent for path in RUNS.glob("*/recipe.json") if any((path.parent / name).exists() for name in CHECKPOINTS)]
