"""A noisy student is better than its teacher, and better still as the teacher of the next one.

python -m benchmarks.claims.noisy_student                                    a small ViT on digits with 10 % of the labels
python -m benchmarks.claims.noisy_student --scale full --path DATA/svhn      EfficientNet-B0 on SVHN and its extra images, on a GPU
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.claims.arms import accuracy
from benchmarks.claims.claim import Arm, Claim, Metrics, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import Recipe, SelfTraining, get_recipe, self_train

TEACHER, STUDENTS = "teacher", ("first student", "second student", "third student")
# the recipe's forty epochs, of nine batches of labelled images each
UPDATES, UPDATES_PER_EPOCH = 360, 9
# between the seeds of one student and the next: no two trainings of all seeds begin alike
SEEDS_APART = 1000


@dataclass(frozen=True)
class Student:
    """Trained on what the model before says of the images without labels.

    Attributes:
        cycle: 1 for the teacher's own student.
    """

    cycle: int

    def __call__(self, recipe: Recipe, folder: Path, before: Path, device: torch.device | None) -> Metrics:
        told_by = before if self.cycle == 1 else before / "cycle-1/student/final"
        recipe = replace(recipe, train=replace(recipe.train, seed=recipe.train.seed + SEEDS_APART * self.cycle))
        (row,) = self_train(SelfTraining(recipe=recipe, cycles=1, teacher=str(told_by)), folder, device=device)
        right = row["pseudo_labels"].get("right")
        found = {"top1": 100 * row["metrics"]["top1"], "train_loss": row["train"]["loss"]}
        return found if right is None else found | {"pseudo_labels_right": 100 * right}


def claim(setting: Setting) -> Claim:
    """A noisy student is better than its teacher, and better still as the teacher of the next one."""
    recipe = get_recipe("noisy_student_digits" if setting.scale == "tiny" else "noisy_student_svhn")
    setting.check_data(recipe.data.name)
    recipe = replace(recipe, train=replace(recipe.train, eval_every=10**6))
    if setting.scale == "tiny":
        recipe = replace(recipe, train=replace(recipe.train, epochs=max(1, round(setting.updates / UPDATES_PER_EPOCH))))
    else:
        data, unlabelled = (replace(images, path=setting.path) for images in (recipe.data, recipe.unlabelled))
        recipe = replace(recipe, data=data, unlabelled=unlabelled)
    arms = [Arm(name=TEACHER, recipe=SelfTraining(recipe=recipe).of_teacher(), measure=accuracy, keep=True)]
    for cycle, name in enumerate(STUDENTS, 1):
        arms.append(Arm(name=name, recipe=recipe, train=Student(cycle), teacher=arms[-1].name))
    first, second, last = STUDENTS
    return Claim(
        name="noisy_student",
        title="Noisy Student",
        says="A student of the teacher's architecture, with noise and its teacher's word on unlabelled images, is better than its teacher; cycles add to it",
        source="arXiv:1911.04252, tables 6 and 7",
        arms=tuple(arms),
        parts=(
            more("the first student beats the teacher", first, TEACHER),
            more("the third student beats the teacher", last, TEACHER),
            more("the second student beats the first", second, first),
            more("the third student beats the second", last, second),
        ),
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
