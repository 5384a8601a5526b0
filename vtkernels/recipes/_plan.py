"""What a recipe would do, told without doing it: sizes, memory, steps and rates. Models are built without memory, and no data are read."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from vtkernels.recipes._build import check, check_monitor, check_size, updates_per_epoch
from vtkernels.recipes._data import DRAWN
from vtkernels.recipes._errors import RecipeError, named, refuse
from vtkernels.recipes._recipe import Recipe
from vtkernels.recipes._task import Given, holder_of

if TYPE_CHECKING:
    from vtkernels.train import Task

GIB = 2**30
# what a process is taken to compute in a second: about a third of what GPUs of 2020 do in bfloat16
ASSUMED_SPEED = 100e12
PASSES = {1: "a forward and backward pass", 2: "two forward and backward passes"}


class Memory(NamedTuple):
    """Estimated bytes of one process, of float32 weights.

    Attributes:
        state: weights, gradients, and what the optimizer, SAM and the moving average keep.
        activations: what the backward needs of the forward of one pass.
    """

    state: int
    activations: int


def plan(recipe: Recipe, world: int = 1) -> str:
    """Lines to read before a long training."""
    recipe = recipe.resolved(world)
    batch_size = check(recipe, world)
    classes, images = _published(recipe)
    batches = _batches(recipe, images, batch_size, world)
    updates = updates_per_epoch(batches, recipe)
    recipe.schedule.check(recipe.train.epochs, updates)
    task = task_without_memory(recipe, classes)
    parameters = _count(task)
    beside = recipe.unlabelled.ratio * recipe.unlabelled.VIEWS if recipe.unlabelled else 0
    taught = holder_of("teacher", task)
    teacher = taught and taught.teacher
    memory = memory_of(recipe, task, teacher, batch_size * (recipe.augment.views + beside), classes)
    gmacs, total = macs_of(task.model, recipe.data.size) / 1e9, memory.state + memory.activations
    of_teacher = macs_of(teacher, recipe.data.size) / 1e9 if teacher else 0
    work = work_of(recipe, gmacs * 1e9, of_teacher * 1e9, updates)
    views = f", {recipe.augment.views} views of each image" if recipe.augment.views > 1 else ""
    views += f", and {beside} times as many without labels" if beside else ""
    passes = PASSES.get(passes_of(recipe), f"{passes_of(recipe)} forward and backward passes")
    lines = {
        "recipe": recipe.name,
        "model": f"{recipe.model.name}, {parameters / 1e6:.2f} M parameters, {gmacs:.3g} G multiply-adds an image forward",
        **_teacher_line(recipe, teacher, of_teacher),
        "data": f"{recipe.data.name}, {images:,} images of {recipe.data.size} x {recipe.data.size}, {classes} classes",
        "batch": f"{recipe.data.batch_size} = {world} processes x {recipe.train.accumulate} passes x {batch_size}{views}",
        "steps": f"{recipe.train.epochs} epochs x {updates:,} = {recipe.train.epochs * updates:,} updates, {passes} each",
        "memory": f"about {total / GIB:.2f} GiB a process, by formula and not measured: {memory.state / GIB:.2f} of weights and what goes with them, "
        f"{memory.activations / GIB:.2f} of activations in {recipe.train.precision}",
        "compute": f"{work:.3g} floating point operations: {work / world / ASSUMED_SPEED / 3600:.3g} h by formula and not measured, "
        f"if a process does an assumed {ASSUMED_SPEED:.0e} a second",
        "optimizer": _fields(recipe.optim) + (f" in {_fields(recipe.sam)}" if recipe.sam else ""),
        "schedule": _fields(recipe.schedule),
        "rates": _rates(recipe, updates),
    }
    return "\n".join(f"{name:10} {line}" for name, line in lines.items())


def task_without_memory(recipe: Recipe, classes: int) -> "Task":
    with torch.device("meta"):
        # a plan needs nobody's weights
        model = replace(recipe.model, checkpoint=None).build(recipe.data.size, classes)
        check_size(recipe, model)
        with named("task"):
            task = recipe.task.build(Given(model, classes, recipe.mix is not None, recipe.augment.views, recipe.data.size))
    check_monitor(recipe, task)
    return task


def _teacher_line(recipe: Recipe, teacher: torch.nn.Module | None, gmacs: float) -> dict[str, str]:
    asked = holder_of("teacher", recipe.task)
    if asked is None:
        return {}
    name = asked.teacher or "not given yet"
    if teacher is None:
        return {"teacher": f"{name}, whose architecture is not known here: neither its memory nor its work is counted"}
    return {"teacher": f"{name}, {_count(teacher) / 1e6:.2f} M parameters, {gmacs:.3g} G multiply-adds an image forward"}


def _count(module: torch.nn.Module | None) -> int:
    return sum(param.numel() for param in module.parameters()) if module is not None else 0


def _published(recipe: Recipe) -> tuple[int, int]:
    """Classes and training images: of the files if they are there, else as published."""
    known = recipe.data.published()
    try:
        train, _ = replace(recipe.data, relabel=None).datasets()
        return len(train.classes), len(train)
    except (RecipeError, ImportError):
        path = recipe.data.path
        if known is None or recipe.data.name in DRAWN or (path is not None and path.is_dir()):
            raise
    return known.classes, int(known.train_images * recipe.data.fraction)


def _batches(recipe: Recipe, images: int, batch_size: int, world: int) -> int:
    """Of an epoch in one process, as the loader counts them."""
    from vtkernels.data.samplers import Repeated, Shuffled

    place = {"rank": 0, "world": world}
    sampler = Repeated(images, recipe.augment.repeats, **place) if recipe.augment.repeats > 1 else Shuffled(images, **place)
    if len(sampler) < batch_size:
        refuse("data.batch_size", f"be at most the training set's {images} images", recipe.data.batch_size)
    return len(sampler) // batch_size


def macs_of(model: torch.nn.Module, size: int) -> int:
    """Multiply-adds of one image forward, in products of matrices and convolutions."""
    # fused ops are counted as what their references compute
    counter, training = FlopCounterMode(display=False, custom_mapping=_fused_ops()), model.training
    with counter:
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    model.train(training)
    return counter.get_total_flops() // 2


def passes_of(recipe: Recipe) -> int:
    """Through the model, forward and backward, for one update: SAM's are two, and each begins with the steps of an attack, if there is one."""
    attack = holder_of("epsilon", recipe.task)
    return (1 if recipe.sam is None else 2) * (1 if attack is None else 1 + attack.steps)


def work_of(recipe: Recipe, macs: float, of_teacher: float, updates: int) -> float:
    """Floating point operations of a whole training: the backward costs two forwards, and what is not kept is computed once more."""
    forwards = 4 if recipe.train.grad_checkpointing else 3
    images = passes_of(recipe) * recipe.augment.views * recipe.data.batch_size * updates * recipe.train.epochs
    return 2 * (macs * forwards + of_teacher) * images


def _fused_ops() -> dict[Any, Any]:
    """Floating point operations by the shapes of the arguments, two for a multiply-add."""
    ops = torch.ops.vtkernels
    return {ops.window_attention: _window_attention, ops.talking_heads_attention: _talking_heads, ops.class_attention: _class_attention}


def _window_attention(qkv: Any, table: Any, scale: Any, mask: Any, bias: Any, heads: int, window: Any, *rest: Any, **shapes: Any) -> int:
    batch, height, width, channels = qkv
    rows, columns = window
    positions = batch * (-(-height // rows) * rows) * (-(-width // columns) * columns)
    return 4 * positions * rows * columns * (channels // 3)


def _talking_heads(qkv: Any, before: Any, *rest: Any, **shapes: Any) -> int:
    batch, tokens, channels = qkv
    return 4 * batch * tokens**2 * (channels // 3 + before[0] ** 2)


def _class_attention(tokens: Any, *rest: Any, **shapes: Any) -> int:
    batch, count, channels = tokens
    return 2 * batch * (channels**2 + 2 * count * channels**2 + 2 * count * channels)


def memory_of(recipe: Recipe, task: torch.nn.Module, teacher: torch.nn.Module | None, images: int, classes: int) -> Memory:
    """What tensors there will be; of what libraries take for themselves, nothing is known. A teacher has weights, and keeps nothing for a backward."""
    trained = sum(param.numel() for param in task.parameters() if param.requires_grad)
    weights = _count(task)
    # gradients, and the copies of optimizer and SAM
    copies = 1 + recipe.optim.STATES + (recipe.sam is not None)
    average = weights if recipe.train.ema_decay is not None else 0
    return Memory(4 * (weights + copies * trained + average + _count(teacher)), _saved_bytes(recipe, task, classes) * images)


def _saved_bytes(recipe: Recipe, task: torch.nn.Module, classes: int) -> int:
    """Of one image, for the backward: each tensor once, however many operations keep it."""
    kept = {id(param) for param in task.parameters()}
    found: dict[Any, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in kept:
            # held, so that no later tensor gets its place
            found[base] = base.numel() * base.element_size()
        return tensor

    # two images, since some layers refuse statistics of one value
    images, size = 2, recipe.data.size
    model = task.model.train()
    model.set_grad_checkpointing(recipe.train.grad_checkpointing)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.empty(images, 3, size, size, device="meta"))
    # autocast leaves tensors without memory alone; it would keep most of them in 16 bits
    return sum(found.values()) // (images if recipe.train.precision == "float32" else 2 * images)


def _rates(recipe: Recipe, updates: int) -> str:
    epochs = recipe.train.epochs
    with named("schedule"):
        schedule = recipe.schedule.build(recipe.optim.lr, epochs, updates)
    turn = min(epochs, -(-recipe.schedule.warmup_epochs(updates) // 1))
    at = sorted({0, int(turn), epochs // 2, epochs - 1})
    return ", ".join(f"{schedule(epoch * updates):.4g} in epoch {epoch}" for epoch in at)


def _fields(section: Any) -> str:
    told = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in vars(section).items() if value is not None)
    return f"{type(section).__name__} ({told})"
