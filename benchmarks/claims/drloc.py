"""DRLOC raises the accuracy of transformers trained from scratch on few images, and helps a ResNet little.

python -m benchmarks.claims.drloc                                     smallest models on digits
python -m benchmarks.claims.drloc --scale full --path DATA/cifar10    the recipes for CIFAR-10, on a GPU
python -m benchmarks.claims.drloc --scale full --data flowers102 --path DATA/flowers102
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import accuracy, sized
from benchmarks.claims.claim import Arm, Claim, Part, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import get_recipe

FRACTIONS = (0.1, 0.3, 1.0)
# by a third of it a small Swin has not learnt what its images hold, and more of them do not help
UPDATES = 810
RECIPES = {"Swin": "swin_t_drloc", "T2T": "t2t_14_drloc", "CvT": "cvt_13_drloc", "ViT": "vit_b_drloc", "ResNet": "resnet50_drloc"}
TRANSFORMERS = ("Swin", "T2T", "CvT", "ViT")


def named(model: str, fraction: float, drloc: bool) -> str:
    return f"{line(model, drloc)}, {100 * fraction:g} %"


def line(model: str, drloc: bool) -> str:
    return f"{model} with DRLOC" if drloc else model


def claim(setting: Setting) -> Claim:
    """DRLOC raises the accuracy of transformers trained from scratch on few images, and helps a ResNet little."""
    arms, parts, lines = [], [], {}
    for model, name in RECIPES.items():
        drloc = get_recipe(name)
        for recipe in (replace(drloc, task=drloc.task.inner), drloc):
            used = recipe is drloc
            own = {fraction: named(model, fraction, used) for fraction in FRACTIONS}
            arms += [Arm(name=own[fraction], recipe=sized(recipe, setting, fraction=fraction), measure=accuracy) for fraction in FRACTIONS]
            lines[line(model, used)] = tuple(own.values())
    for model in TRANSFORMERS:
        parts += [
            more(f"{model} gains by DRLOC on {100 * fraction:g} %", named(model, fraction, True), named(model, fraction, False)) for fraction in FRACTIONS
        ]
    for model in TRANSFORMERS:
        few = FRACTIONS[0]
        terms = {named(model, few, True): 1, named(model, few, False): -1, named("ResNet", few, True): -1, named("ResNet", few, False): 1}
        parts.append(Part(says=f"{model} gains more than a ResNet on 10 %", terms=terms))
    return Claim(
        name="drloc",
        title="DRLOC",
        says="Dense relative localisation raises the accuracy of transformers trained from scratch on few images, and helps a ResNet little",
        source="arXiv:2106.03746, tables 2 to 4",
        arms=tuple(arms),
        parts=tuple(parts),
        lines=lines,
        places=tuple(100 * fraction for fraction in FRACTIONS),
        paired_lines=True,
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
