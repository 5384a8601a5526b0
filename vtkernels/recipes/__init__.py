"""Recipes: everything that decides the values of a training, as typed dataclasses that small functions return.

    from vtkernels.recipes import build, get_recipe
    build(get_recipe("smoke"), folder="runs/smoke").fit()

A family of recipes is a file of this folder; what is chosen in them (an optimizer, a schedule, a task, ...) is a dataclass that
can build what it names, so that a new choice is a new class, and no code asks which recipe it runs.
"""

from vtkernels.recipes._augment import (
    Augment,
    AugMix,
    AutoAugment,
    Cutout,
    Mixup,
    PaddedCrop,
    RandAugment,
    RandomAutoAugment,
    RandomErasing,
    ResizedCrop,
    Scene,
    ThreeAugment,
)
from vtkernels.recipes._build import build
from vtkernels.recipes._commands import commands
from vtkernels.recipes._data import Bootstrap, Data
from vtkernels.recipes._errors import RecipeError
from vtkernels.recipes._optim import ASAM, GSAM, LAMB, SAM, SGD, SGDW, AdamW, FriendlySAM, LookSAM, PerProcess, PerSamples, RMSprop
from vtkernels.recipes._plan import plan
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import choices_of, describe_recipe, get_recipe, list_recipes, recipe
from vtkernels.recipes._schedule import Constant, Cosine, Decay, Linear, Plateau, Steps
from vtkernels.recipes._self_training import SelfTraining, self_train
from vtkernels.recipes._task import (
    Adversarial,
    BinaryCrossEntropy,
    Classification,
    Consistency,
    CrossEntropy,
    Detection,
    Distillation,
    Drloc,
    FixMatch,
    NoisyStudent,
    Segmentation,
)
from vtkernels.recipes._tiny import scaled, tiny
from vtkernels.recipes._tuning import AttentionOnly, HeadOnly
from vtkernels.recipes._unlabelled import PseudoLabelled, WeakAndStrong
from vtkernels.train import Settings

__all__ = [
    "ASAM",
    "GSAM",
    "LAMB",
    "SAM",
    "SGD",
    "SGDW",
    "AdamW",
    "Adversarial",
    "AttentionOnly",
    "AugMix",
    "Augment",
    "AutoAugment",
    "BinaryCrossEntropy",
    "Bootstrap",
    "Classification",
    "Consistency",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Cutout",
    "Data",
    "Decay",
    "Detection",
    "Distillation",
    "Drloc",
    "FixMatch",
    "FriendlySAM",
    "HeadOnly",
    "Linear",
    "LookSAM",
    "Mixup",
    "Model",
    "NoisyStudent",
    "PaddedCrop",
    "PerProcess",
    "PerSamples",
    "Plateau",
    "PseudoLabelled",
    "RMSprop",
    "RandAugment",
    "RandomAutoAugment",
    "RandomErasing",
    "Recipe",
    "RecipeError",
    "ResizedCrop",
    "Scene",
    "Segmentation",
    "SelfTraining",
    "Settings",
    "Steps",
    "ThreeAugment",
    "WeakAndStrong",
    "build",
    "choices_of",
    "commands",
    "describe_recipe",
    "get_recipe",
    "list_recipes",
    "plan",
    "recipe",
    "scaled",
    "self_train",
    "tiny",
]
