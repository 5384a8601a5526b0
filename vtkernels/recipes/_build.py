"""From a recipe to a trainer. Whatever does not fit is told before anything is trained, by the field to change."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vtkernels.recipes._errors import named, nearest, refuse
from vtkernels.recipes._json import encoded
from vtkernels.recipes._recipe import Recipe
from vtkernels.recipes._task import Given, pool_of
from vtkernels.train import Observer, Trainer, distributed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vtkernels.data import Loader, TwoStreams
    from vtkernels.data.datasets import ImageDataset, Statistics
    from vtkernels.train import Task


UNLABELLED_SEED = 1_000_003


def build(recipe: Recipe, *, folder: Path | str | None = None, observers: "Iterable[Observer]" = (), device: torch.device | None = None) -> Trainer:
    """Everything a recipe asks for, ready to `fit()`.

    Args:
        recipe: with several processes, the same in all of them.
        folder: of the run: recipe.json, checkpoints, and what observers write.
        observers: told of what happens.
        device: None takes this process's GPU, if there is one.
    """
    device = device or distributed.this_device()
    recipe = recipe.resolved(distributed.world())
    batch_size = check(recipe, distributed.world())
    train, valid = recipe.data.datasets()
    num_classes = classes_of(recipe, train, valid)
    check_targets(recipe, train)
    # what is saved says how many classes the weights have
    recipe = replace(recipe, model=replace(recipe.model, num_classes=num_classes))
    task = build_task(recipe, num_classes, recipe.data.statistics(train))
    check_monitor(recipe, task)
    train_loader = training_loader(recipe, train, num_classes, batch_size, device)
    valid_loader = validation_loader(recipe, valid, batch_size, device)
    updates = updates_per_epoch(len(train_loader), recipe)
    with named("schedule"):
        recipe.schedule.check(recipe.train.epochs, updates)
        schedule = recipe.schedule.build(recipe.optim.lr, recipe.train.epochs, updates)
    kept = [RecipeFile(recipe, Path(folder))] if folder is not None else []
    return Trainer(
        task,
        lambda module: build_optimizer(recipe, module),
        schedule,
        train_loader,
        valid_loader,
        recipe.train,
        folder=folder,
        observers=[*kept, *observers],
        config={"recipe": encoded(recipe)},
        device=device,
    )


class RecipeFile(Observer):
    """Writes the recipe into the run's folder."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.path = recipe, folder / "recipe.json"

    def on_start(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(self.recipe.json())
        partial.replace(self.path)


def check(recipe: Recipe, world: int = 1) -> int:
    """What can be told without data and model. Returns the images of one pass in one process."""
    for section in (recipe.model, recipe.data, recipe.augment, recipe.task, recipe.optim, *([recipe.mix] if recipe.mix else [])):
        section.check()
    check_pool(recipe)
    if recipe.augment.joint != recipe.task.joint:
        wanted, got = ("scene", "images alone") if recipe.task.joint else ("augment", "images with their masks or boxes")
        refuse("augment", "suit the task", f"one for {got}", f"try --augment {wanted}")
    parts = world * recipe.train.accumulate
    whole = recipe.data.batch_size
    if whole % parts:
        told = f"{world} processes of {recipe.train.accumulate} passes"
        refuse("data.batch_size", f"be a multiple of {parts}, for {told}", whole, f"try --data.batch-size {max(whole // parts, 1) * parts}")
    batch_size = whole // parts
    if recipe.mix and recipe.mix.partner == "flip" and batch_size % 2:
        refuse(
            "data.batch_size", "give each process an even batch, of which mixing makes pairs", batch_size, f"try --data.batch-size {(batch_size + 1) * parts}"
        )
    return batch_size


def check_pool(recipe: Recipe) -> None:
    """The task and the images without labels must suit each other."""
    wanted, pool = pool_of(recipe.task), recipe.unlabelled
    if type(pool) is not (wanted or type(None)):
        names = [kind.__name__.lower() if kind is not None else "none" for kind in (wanted, pool and type(pool))]
        refuse("unlabelled", f"be {names[0]} for this task", names[1], f"choose --unlabelled {names[0]}, or another --task")
    if pool is None:
        return
    pool.check(recipe.augment)
    if recipe.mix is not None:
        refuse("mix", "be none beside unlabelled images", type(recipe.mix).__name__, "try --mix none")


def classes_of(recipe: Recipe, *sets: "ImageDataset") -> int:
    """Of the data, which the model must agree with."""
    counts = {len(dataset.classes) for dataset in sets}
    if len(counts) > 1:
        refuse("data.valid_split", "have the classes of the training set", f"{sorted(counts)} classes", "are both splits of one set?")
    (count,) = counts
    first, *others = (dataset.classes for dataset in sets)
    for own, other in ((own, other) for classes in others for own, other in zip(first, classes, strict=True)):
        if own != other:
            refuse(
                "data.valid_split", "have the classes of the training set, in its order", f"{other!r} in the place of {own!r}", "are both splits of one set?"
            )
    wanted = recipe.model.num_classes
    if wanted is not None and wanted != count:
        refuse("model.num_classes", f"be {count}, as many as {recipe.data.name} has", wanted, "leave it out, or choose other --data.name")
    return count


def check_targets(recipe: Recipe, train: "ImageDataset") -> None:
    """Whether a set has masks, boxes or classes is told by its first sample."""
    first = train.target(0)
    if not recipe.task.suits(first):
        got = "boxes" if isinstance(first, dict) else "maps of classes" if np.ndim(first) > 1 else "one class"
        refuse("data", f"have {recipe.task.TARGETS} for each image", f"{got} in {recipe.data.name}", "another --task, other --data.name or --data.options.task")


def build_task(recipe: Recipe, num_classes: int, statistics: "Statistics | None" = None) -> "Task":
    # the same weights in every process, and in every run of the recipe
    torch.manual_seed(recipe.train.seed)
    model = recipe.model.build(recipe.data.size, num_classes)
    model.statistics = statistics
    check_size(recipe, model)
    with named("task"):
        return recipe.task.build(Given(model, num_classes, recipe.mix is not None, recipe.augment.views, recipe.data.size, statistics))


def check_monitor(recipe: Recipe, task: "Task") -> None:
    """Metrics are first asked for after an epoch, which is too late to learn that there is no such one."""
    if recipe.train.monitor not in task.metrics:
        refuse("train.monitor", f"be one of {', '.join(task.metrics)}", repr(recipe.train.monitor), nearest(recipe.train.monitor, task.metrics))


def check_size(recipe: Recipe, model: torch.nn.Module) -> None:
    """One black image goes through."""
    like = next(model.parameters())
    images = torch.zeros(1, 3, recipe.data.size, recipe.data.size, device=like.device)
    try:
        with torch.no_grad():
            model.eval()(images)
    except (ValueError, RuntimeError) as error:
        refuse("data.size", f"suit {recipe.model.name}", recipe.data.size, str(error))
    model.train()


def training_loader(recipe: Recipe, dataset: "ImageDataset", num_classes: int, batch_size: int, device: torch.device) -> "Loader | TwoStreams":
    from vtkernels.data import TwoStreams, create_loader

    data, augment = recipe.data, recipe.augment
    statistics = data.statistics(dataset)
    if -(-len(dataset) // distributed.world()) < batch_size:
        refuse("data.batch_size", f"be at most the training set's {len(dataset)} images", data.batch_size)
    common: dict[str, Any] = {"train": True, "workers": data.workers, "device": device, "on_corrupt": data.on_corrupt}
    with named("augment"):
        transform = augment.build(data.size, statistics)
    with named("erase"):
        erase = recipe.erase.build(augment.views) if recipe.erase else None
    with named("mix"):
        mix = recipe.mix.build(num_classes, recipe.task.smoothing, augment.views) if recipe.mix else None
    loader = create_loader(
        dataset,
        batch_size,
        transform=transform,
        seed=recipe.train.seed,
        statistics=None if augment.normalizes else statistics,
        erase=erase,
        mix=mix,
        repeats=augment.repeats,
        **common,
    )
    if (pool := recipe.unlabelled) is None:
        return loader
    samples, size = pool.samples(data, dataset.classes), batch_size * pool.ratio
    if len(samples) < size * distributed.world():
        refuse("unlabelled.ratio", f"make batches that the pool's {len(samples)} images fill", pool.ratio, "lower it, or data.batch_size")
    # else image n of both sets would be augmented alike
    seed = recipe.train.seed + UNLABELLED_SEED
    erase = recipe.erase.build(pool.VIEWS) if recipe.erase else None
    with named("unlabelled"):
        transform = pool.transform(augment, data.size, statistics)
    unlabelled = create_loader(samples, size, transform=transform, seed=seed, statistics=statistics, erase=erase, **common)
    return TwoStreams(loader, unlabelled)


def validation_loader(recipe: Recipe, dataset: "ImageDataset", batch_size: int, device: torch.device) -> "Loader":
    from vtkernels.data import create_loader

    data = recipe.data
    with named("augment"):
        transform = recipe.augment.build_valid(data.size, data.statistics(dataset), data.eval_crop, data.squash)
    given: dict[str, Any] = {"workers": data.workers, "device": device, "on_corrupt": data.on_corrupt}
    return create_loader(dataset, data.valid_batch_size or batch_size, transform=transform, statistics=data.statistics(dataset), **given)


def build_optimizer(recipe: Recipe, module: torch.nn.Module) -> torch.optim.Optimizer:
    groups = recipe.optim.groups(module)
    with named("optim" if recipe.sam is None else "optim or sam"):
        return recipe.optim.build(groups) if recipe.sam is None else recipe.sam.build(groups, *recipe.optim.base(), module)


def updates_per_epoch(batches: int, recipe: Recipe) -> int:
    return -(-batches // recipe.train.accumulate)
