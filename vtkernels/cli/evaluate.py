"""`vtkernels eval`: the weights of a run, or of a checkpoint, on one or many test sets."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtkernels.recipes import Recipe


def evaluate(arguments: list[str]) -> int:
    from vtkernels.recipes import Recipe, RecipeError

    try:
        folder = Path(arguments[0]) if arguments else Path()
        if (folder / "recipe.json").is_file() and (recipe := Recipe.load(folder)).task.joint:
            return _evaluate_scenes(recipe, folder, arguments[1:])
    except (RecipeError, OSError, ImportError) as error:
        print(f"vtkernels eval: {error}", file=sys.stderr)
        return 2
    return _evaluate_images(arguments)


def _evaluate_scenes(recipe: "Recipe", folder: Path, arguments: list[str]) -> int:
    """Masks and boxes, by the measures of the task that learnt them, on the set of the recipe: no corrupted copies or attacks are known for these."""
    from dataclasses import replace

    from vtkernels.cli.fields import changed
    from vtkernels.models._checkpoint import read_weights
    from vtkernels.recipes import build

    recipe = changed(recipe, arguments, f"vtkernels eval {folder}")
    trainer = build(replace(recipe, model=replace(recipe.model, checkpoint=None)))
    # of the best epoch
    trainer.model.load_state_dict(read_weights(folder / "weights"))
    for name, value in trainer.evaluate().items():
        print(f"{name:10} {value:.4f}")
    return 0


def _evaluate_images(arguments: list[str]) -> int:
    try:
        # what comes out is drawn: to find that missing at the end would be too late
        import matplotlib  # noqa: F401
        import tyro
    except ImportError as error:
        print(f"vtkernels eval: expected {error.name} to be installed, got no such package; try pip install 'vtkernels[train]'", file=sys.stderr)
        return 2
    from vtkernels.evaluation.command import EvaluationOptions, run

    # `vtkernels eval runs/x`: what is evaluated needs no option's name
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    words = "Which model, on which images. vtkernels eval MODEL [OPTIONS], with a model's name or the folder of a run."
    options = tyro.cli(EvaluationOptions, args=arguments, prog="vtkernels eval", description=words)
    try:
        return run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
