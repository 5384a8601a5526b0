"""How a recipe is trained on one GPU and on eight, as lines for a terminal."""

from vtkernels.recipes._data import DRAWN
from vtkernels.recipes._optim import PerProcess
from vtkernels.recipes._registry import get_recipe

GPUS = 8


def commands(name: str) -> tuple[str, str]:
    """On one GPU, in as many passes as there would be processes; and on eight. Both make the same updates."""
    recipe = get_recipe(name)
    path = "" if recipe.data.name in DRAWN else f" --data.path {recipe.data.name}"
    whole = f"train {name}{path}"
    divides = recipe.data.batch_size % GPUS == 0 and (recipe.data.batch_size // GPUS) % 2 == 0
    passes = f" --train.accumulate {GPUS}" if divides and recipe.data.batch_size > 128 else ""
    rate = f" --optim.lr {GPUS * recipe.optim.lr:g}" if isinstance(recipe.optim.scaling, PerProcess) else ""
    return f"vtkernels {whole}{passes}{rate}", f"torchrun --nproc-per-node {GPUS} -m vtkernels {whole}"
