"""A student taught by a convolutional net beats the same student alone; best with hard labels and a token of its own.

python -m benchmarks.claims.distillation                                      smallest models on digits
python -m benchmarks.claims.distillation --scale full --path DATA/imagenet    DeiT-S and timm's RegNetY-16GF, on a GPU
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import accuracy, longer, sized
from benchmarks.claims.claim import Arm, Claim, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import Distillation, Model, get_recipe

ALONE, TOKEN, HARD, SOFT, TEACHER = "student alone", "hard labels, token", "hard labels, no token", "soft labels, no token", "teacher"


def claim(setting: Setting) -> Claim:
    """A student taught by a convolutional net beats the same student alone; best with hard labels and a token of its own."""
    alone, token = get_recipe("deit_small"), get_recipe("deit_small_distilled")
    hard = replace(token, model=alone.model)
    # the paper's values
    soft = replace(hard, task=replace(hard.task, form="soft", alpha=0.1, temperature=3.0))
    recipes = {ALONE: alone, TOKEN: token, HARD: hard, SOFT: soft}
    arms, teacher = [], None
    if setting.scale == "tiny":
        # no published teacher knows digits: one is trained, for longer, since it shall be better than its students
        resnet = longer(sized(replace(alone, model=Model(name="resnet_nano")), setting), 3)
        arms, teacher = [Arm(name=TEACHER, recipe=resnet, measure=accuracy, keep=True)], TEACHER
    for name, recipe in recipes.items():
        taught = isinstance(recipe.task, Distillation)
        arms.append(Arm(name=name, recipe=sized(recipe, setting), measure=accuracy, teacher=teacher if taught else None))
    return Claim(
        name="distillation",
        title="Distillation",
        says="A student taught by a convolutional net beats the same student alone; best with hard labels and a token of its own",
        source="arXiv:2012.12877, tables 2 and 3",
        arms=tuple(arms),
        parts=(
            more("hard labels and a token beat no teacher", TOKEN, ALONE),
            more("hard labels without a token beat no teacher", HARD, ALONE),
            more("soft labels beat no teacher", SOFT, ALONE),
            more("hard labels beat soft ones", HARD, SOFT),
            more("a token beats none", TOKEN, HARD),
        ),
    )


if __name__ == "__main__":
    sys.exit(main(claim))
