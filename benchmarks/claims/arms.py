"""Recipes at the scale that is asked for, and with less data; the usual measure of a trained model."""

from dataclasses import replace

from benchmarks.claims.claim import Metrics, Setting
from vtkernels.recipes import Augment, Model, PaddedCrop, Recipe, tiny
from vtkernels.train import Trainer

TINY_BATCH = 32
# training images of the digits
TINY_IMAGES = 1442


def sized(recipe: Recipe, setting: Setting, *, fraction: float = 1.0, augmented: bool = False) -> Recipe:
    """The recipe at the setting's scale, on a share of its images.

    All shares are trained by about as many updates: images shall be scarce, not steps.

    Args:
        augmented: at tiny scale, keep the recipe's policy, mixing and erasing. Some hundred updates are too few for them, so that claims about
            something else are tested without.
    """
    if setting.scale == "tiny":
        recipe = small(recipe, setting, augmented)
    elif setting.data is not None or setting.path is not None:
        recipe = replace(recipe, data=replace(recipe.data, name=setting.data or recipe.data.name, path=setting.path or recipe.data.path))
    recipe = replace(recipe, train=replace(recipe.train, eval_every=10**6))
    return recipe if fraction == 1 else longer(replace(recipe, data=replace(recipe.data, fraction=fraction)), 1 / fraction)


def small(recipe: Recipe, setting: Setting, augmented: bool) -> Recipe:
    epochs = max(1, round(setting.updates / (TINY_IMAGES // TINY_BATCH)))
    recipe = tiny(recipe, setting.data or "digits", epochs)
    # rates that change by the epoch are too coarse for so few epochs
    schedule = replace(recipe.schedule, per="update")
    recipe = replace(recipe, data=replace(recipe.data, batch_size=TINY_BATCH), model=with_quick_start(recipe.model), schedule=schedule)
    if not augmented:
        recipe = replace(recipe, augment=Augment(crop=PaddedCrop(padding=2), flip=0.0), mix=None, erase=None)
    return recipe


def with_quick_start(model: Model) -> Model:
    """As in the recipe `smoke`: the small initial weights of ViT and Swin want more updates than there are."""
    return replace(model, options={"init": "xavier", **model.options}) if model.name.startswith(("vit_nano", "swin_nano")) else model


def longer(recipe: Recipe, factor: float) -> Recipe:
    """More epochs, with the curves of rates and weights stretched by as much."""
    schedule, stretched = recipe.schedule, {"warmup": recipe.schedule.warmup * factor}
    if getattr(schedule, "span", None):
        stretched["span"] = schedule.span * factor
    return replace(
        recipe,
        task=recipe.task.tiny(factor),
        schedule=replace(schedule, **stretched),
        train=replace(recipe.train, epochs=max(1, round(recipe.train.epochs * factor))),
    )


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """Weights, order, augmentation, and which images a share consists of."""
    return replace(recipe, data=replace(recipe.data, fraction_seed=seed), train=replace(recipe.train, seed=seed))


def accuracy(trainer: Trainer, recipe: Recipe) -> Metrics:
    """In percent, after the last epoch: to take the best one would be to choose by the test images."""
    last = trainer.history.epochs[-1]
    return {"top1": 100 * (last.ema or last.valid)["top1"], "train_loss": last.train["loss"]}
