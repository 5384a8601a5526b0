"""A teacher, what it says of images without labels, a student of that, who is the next teacher: Noisy Student from end to end.

    FOLDER/plan.json                      what was asked for
    FOLDER/teacher/                       a run, with the weights of its last epoch in final/
    FOLDER/cycle-1/pseudo_labels.npz      see vtkernels.data.pseudo_labels
    FOLDER/cycle-1/student/               a run like the teacher's
    FOLDER/summary.json                   what is done, and how good it is

What is there is not done again, and a run that was stopped goes on where it was.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from vtkernels.recipes._build import build, check, classes_of, validation_loader
from vtkernels.recipes._errors import check_between, refuse
from vtkernels.recipes._json import from_json, to_json
from vtkernels.recipes._plan import task_without_memory
from vtkernels.recipes._recipe import Recipe
from vtkernels.recipes._task import Classification, CrossEntropy, Given, NoisyStudent
from vtkernels.recipes._teacher import Normalized, teacher
from vtkernels.recipes._unlabelled import PseudoLabelled
from vtkernels.train import Observer, distributed

FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class SelfTraining:
    """What is done.

    Attributes:
        recipe: of the students.
        cycles: how many students there are, one after the other.
        teacher: weights of a teacher that is there already, as in `Distillation`; None trains one.
        teacher_model: its architecture where the weights do not tell; or, of one to be trained, another model than the students'.
        teacher_normalize: how its images were normalised, where its weights do not tell.
        students: models of the students, the last one again for those that are left; none given are all the recipe's.
    """

    recipe: Recipe = field(default_factory=Recipe)
    cycles: int = 3
    teacher: str | None = None
    teacher_model: str | None = None
    teacher_normalize: Normalized | None = None
    students: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Self:
        path = folder / "plan.json"
        if not path.is_file():
            refuse("--resume", "be the folder of a noisy student", str(folder), "`vtkernels noisy-student RECIPE` begins one")
        return from_json(cls, path.read_text(), str(path))

    def check(self) -> None:
        from vtkernels.models import model_info

        check_between("--cycles", self.cycles, 1)
        if not isinstance(self.recipe.task, NoisyStudent) or not isinstance(self.recipe.unlabelled, PseudoLabelled):
            hint = "choose one of `vtkernels list recipes 'noisy_student*'`"
            refuse("task", "be a noisy student, with pseudo-labelled images", type(self.recipe.task).__name__, hint)
        if len(self.students) > self.cycles:
            refuse("--students", f"name at most one model for each of {self.cycles} cycles", list(self.students))
        trained = [] if self.teacher else [self.of_teacher()]
        recipes = [*trained, *(self.of_student(cycle, Path()) for cycle in range(1, self.cycles + 1))]
        for recipe in recipes:
            recipe.model.check()
        names = [recipe.model.name for recipe in recipes]
        sizes = [model_info(name).parameters for name in names]
        for name, size, before, least in zip(names[1:], sizes[1:], names, sizes, strict=False):
            if size < least:
                refuse("--students", f"be at least as large as their teachers: {before} has {least:,} parameters", f"{name} of {size:,}")

    def check_students(self) -> None:
        """What no student could be trained with, told before their teacher is: images without labels that are not there, models that do not suit."""
        data = replace(self.recipe.data, relabel=None)
        num_classes = classes_of(self.recipe, *data.datasets())
        self.recipe.unlabelled.images(data)
        for cycle in range(1, self.cycles + 1):
            recipe = self.of_student(cycle, Path())
            check(recipe, distributed.world())
            task_without_memory(recipe, num_classes)

    def of_teacher(self) -> Recipe:
        """The same without pseudo-labels."""
        recipe = self.recipe
        model = replace(recipe.model, name=self.teacher_model) if self.teacher_model else recipe.model
        task = Classification(loss=CrossEntropy(smoothing=recipe.task.smoothing))
        return replace(recipe, name=f"{recipe.name}-teacher", model=model, unlabelled=None, task=task)

    def of_student(self, cycle: int, labels: Path) -> Recipe:
        """Its weights and its noise begin with another seed than its teacher's."""
        recipe = self.recipe
        model = replace(recipe.model, name=self.students[min(cycle, len(self.students)) - 1]) if self.students else recipe.model
        settings = replace(recipe.train, seed=recipe.train.seed + cycle)
        return replace(recipe, name=f"{recipe.name}-{cycle}", model=model, unlabelled=replace(recipe.unlabelled, labels=labels), train=settings)


def self_train(
    plan: SelfTraining,
    folder: Path | str,
    *,
    observers: Callable[[Path], Iterable[Observer]] = lambda folder: (),
    device: torch.device | None = None,
) -> list[dict[str, Any]]:
    """Everything that is not done yet; the rows of summary.json.

    Args:
        plan: with several processes, the same in all of them.
        folder: of a plan that was begun, whatever of it is done, or of none.
        observers: of each run, whose folder they are given.
    """
    plan.check()
    plan.check_students()
    folder, device = Path(folder), device or distributed.this_device()
    _on_first(lambda: _write(folder / "plan.json", to_json(plan)))
    rows: list[dict[str, Any]] = []
    told_by, architecture, normalize = plan.teacher, plan.teacher_model, plan.teacher_normalize
    if told_by is None:
        rows.append({"stage": "teacher"} | _trained(plan.of_teacher(), folder / "teacher", observers, device))
        _on_first(lambda: _write(folder / "summary.json", json.dumps(rows, indent=2) + "\n"))
        told_by, architecture, normalize = str(folder / "teacher" / FINAL), None, None
    for cycle in range(1, plan.cycles + 1):
        own = folder / f"cycle-{cycle}"
        recipe = plan.of_student(cycle, own / "pseudo_labels.npz")
        about = _told(told_by, architecture, normalize, recipe, device)
        rows.append({"stage": f"cycle-{cycle}"} | _trained(recipe, own / "student", observers, device) | {"pseudo_labels": about})
        _on_first(lambda: _write(folder / "summary.json", json.dumps(rows, indent=2) + "\n"))
        told_by, architecture, normalize = str(own / "student" / FINAL), None, None
    return rows


def _trained(recipe: Recipe, folder: Path, observers: Callable[[Path], Iterable[Observer]], device: torch.device) -> dict[str, Any]:
    """The metrics after the last epoch: to choose the best one would be to learn from the images that judge."""
    result = folder / "result.json"
    if distributed.gathered(result.is_file())[0]:
        return json.loads(result.read_text())
    trainer = build(recipe, folder=folder, observers=observers(folder), device=device)
    if distributed.gathered(trainer.files.holds_run)[0]:
        trainer.resume()
    history = trainer.fit()
    trainer.export(FINAL)
    last = history.epochs[-1]
    found = {"model": recipe.model.name, "updates": last.step, "metrics": last.ema or last.valid, "train": last.train}
    _on_first(lambda: _write(result, json.dumps(found, indent=2) + "\n"))
    return found


def _told(source: str, architecture: str | None, normalize: Normalized | None, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Writes what the teacher says of the pool, once; tells what is used of it."""
    from vtkernels.data import PseudoLabels
    from vtkernels.data.datasets import unlabelled

    pool_of, path = recipe.unlabelled, recipe.unlabelled.labels
    train, _ = recipe.data.datasets()
    pool = pool_of.images(recipe.data)
    if not distributed.gathered(path.is_file())[0]:
        given = Given(None, len(train.classes), False, 1, recipe.data.size, recipe.data.statistics(train))
        model = teacher(source, architecture, given, normalize)
        hidden = unlabelled(pool)
        # a pool of another set is seen as the labelled images were
        hidden.statistics = train.statistics
        probabilities = _probabilities(model, hidden, recipe, device)
        labels = PseudoLabels.of(probabilities.numpy(), train.classes, teacher=source, source=pool_of.source(recipe.data))
        _on_first(lambda: (labels if pool_of.form == "soft" else labels.hard()).save(path))
    labels = PseudoLabels.load(path)
    confident = labels.confident(pool_of.confidence)
    about = {"pool": len(pool), "confident": len(confident), "used": len(confident.balanced(pool_of.per_class)), "per_class": confident.counts().tolist()}
    if tuple(pool.classes) == tuple(train.classes):
        # the labels that were held back judge the teacher; nobody learns from them
        about["right"] = float((pool.targets[confident.index] == confident.label).mean()) if len(confident) else None
    return about


def _probabilities(model: torch.nn.Module, pool: Any, recipe: Recipe, device: torch.device) -> torch.Tensor:
    """Of all images, clean, by a model in evaluation mode."""
    from vtkernels.evaluation.predictions import predict

    # a row of the file is an image of the pool: none may be left out
    whole = replace(recipe, data=replace(recipe.data, on_corrupt="raise"))
    loader = validation_loader(whole, pool, recipe.data.valid_batch_size or recipe.data.batch_size, device)
    return predict(model, loader, device=device).logits.double().softmax(1).float()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.writing")
    partial.write_text(text)
    partial.replace(path)


def _on_first(write: Callable[[], None]) -> None:
    """By one process, before any goes on."""
    if distributed.rank() == 0:
        write()
    distributed.gathered(None)
