"""How a recipe is trained on one GPU and on eight, as lines for a terminal."""

from vtkernels.recipes._data import DRAWN
from vtkernels.recipes._optim import PerProcess
from vtkernels.recipes._recipe import Recipe
from vtkernels.recipes._registry import get_recipe
from vtkernels.recipes._task import holder_of
from vtkernels.recipes._unlabelled import PseudoLabelled

GPUS = 8


def commands(name: str) -> tuple[str, str]:
    """On one GPU, in as many passes as there would be processes; and on eight. Both make the same updates."""
    recipe = get_recipe(name)
    # who teaches on pseudo-labels is trained by the same command
    command = "noisy-student" if isinstance(recipe.unlabelled, PseudoLabelled) else "train"
    whole = " ".join([command, name, *_needed(recipe)])
    divides = recipe.data.batch_size % GPUS == 0 and (recipe.data.batch_size // GPUS) % 2 == 0
    passes = f" --train.accumulate {GPUS}" if divides and recipe.data.batch_size > 128 else ""
    rate = f" --optim.lr {GPUS * recipe.optim.lr:g}" if isinstance(recipe.optim.scaling, PerProcess) else ""
    return f"vtkernels {whole}{passes}{rate}", f"torchrun --nproc-per-node {GPUS} -m vtkernels {whole}"


def _needed(recipe: Recipe) -> list[str]:
    """What the recipe does not know: where the files are, and who teaches."""
    data, pool, taught = recipe.data, recipe.unlabelled, holder_of("teacher", recipe.task)
    options = [] if data.name in DRAWN else [f"--data.path {data.name}"]
    if pool is not None and pool.name is not None:
        options.append(f"--unlabelled.path {pool.name}")
    elif pool is not None and data.fraction == 1:
        options.append("--unlabelled.name folder --unlabelled.path unlabelled")
    if taught is not None and taught.teacher is None:
        options.append("--task.teacher FOLDER")
    return options
