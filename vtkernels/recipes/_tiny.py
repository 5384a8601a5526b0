"""Any recipe on a laptop: the smallest model of its family on data that need no files, for a few epochs."""

from dataclasses import replace

from vtkernels.recipes._errors import refuse
from vtkernels.recipes._recipe import Model, Recipe

SCALES = ("full", "tiny")
EPOCHS = 10
# share of labels, and labelled images of a batch, where the other images take part without them
LABELLED, LABELLED_BATCH = 0.1, 16
# configuration fields that make a variant what it is, whatever its size
CHARACTER = ("distilled", "class_token", "pooling", "activation", "drop_path_rule", "layer_scale", "class_position", "shifted_patches", "local_attention")


def scaled(recipe: Recipe, scale: str, data: str = "digits") -> Recipe:
    """The recipe at one of `SCALES`."""
    if scale not in SCALES:
        refuse("scale", f"be one of {', '.join(SCALES)}", repr(scale))
    return tiny(recipe, data) if scale == "tiny" else recipe


def tiny(recipe: Recipe, data: str = "digits", epochs: int = EPOCHS) -> Recipe:
    """What the recipe does stays as it is; sizes, and rates that depend on them, become those of small images."""
    epochs = min(epochs, recipe.train.epochs)
    share = epochs / recipe.train.epochs
    optim, images = recipe.optim.tiny(), recipe.data.tiny(data)
    if recipe.unlabelled is not None:
        images = replace(images, fraction=LABELLED, batch_size=LABELLED_BATCH)
    return replace(
        recipe,
        model=smallest(recipe.model),
        data=recipe.task.tiny_data(images),
        unlabelled=recipe.unlabelled and recipe.unlabelled.tiny(),
        augment=recipe.augment.tiny(),
        mix=recipe.mix and recipe.mix.tiny(share),
        task=recipe.task.tiny(share),
        optim=optim,
        schedule=recipe.schedule.tiny(share, optim.lr),
        train=replace(recipe.train, epochs=epochs, accumulate=1, log_every=5, ema_warmup=True),
    )


def smallest(model: Model) -> Model:
    """The family's variant for tests, with the character of this one."""
    from vtkernels.models._registry import model_config, siblings

    model.check()
    nano = [name for name in siblings(model.name) if "nano" in name]
    if not nano:
        refuse("model.name", "have a variant called nano, for --scale tiny", repr(model.name), "choose another model")
    asked, small = model_config(model.name), model_config(nano[0])
    kept = {field: getattr(asked, field) for field in CHARACTER if hasattr(asked, field) and getattr(asked, field) != getattr(small, field)}
    options = {field: value for field, value in model.options.items() if hasattr(small, field)}
    return replace(model, name=nano[0], num_classes=None, checkpoint=None, options={**kept, **options})
