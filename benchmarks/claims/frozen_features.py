"""A segmentation head on frozen features of a trained classifier beats the same head on random features.

python -m benchmarks.claims.frozen_features                                      a small Swin and a Swin-T that have learnt to name drawn shapes
python -m benchmarks.claims.frozen_features --scale full --path DATA/ade20k      timm's Swin-T of ImageNet, UPerNet on ADE20K, on GPUs
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import TINY_IMAGES, accuracy
from benchmarks.claims.claim import Arm, Claim, Metrics, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import AdamW, Augment, Cosine, Data, Model, PaddedCrop, Recipe, get_recipe
from vtkernels.train import Settings, Trainer

CLASSIFIER, HEADS = "classifier", {"upernet": "UPerNet", "fcn": "FCN"}
SWIN_T, SWIN_T_READER, OF_SWIN_T = "Swin-T classifier", "Swin-T that reads digits", " of Swin-T"
# images that none of the runs saw by which a Swin-T's rates and lengths were chosen
UNSEEN = {"seed": 1}
PRETRAINED = "timm:swin_tiny_patch4_window7_224.ms_in1k"
# updates of the classifier, and the share of them that a head takes
UPDATES, HEAD_SHARE = 1024, 0.5
# for a Swin-T: how many times the updates, and the share of them that digits take before
LONGER, DIGITS_SHARE = 1.375, 0.25
IMAGES, BATCH = 2048, 32


def overlap(trainer: Trainer, recipe: Recipe) -> Metrics:
    """Mean intersection over union of the test images, in percent, after the last epoch."""
    last = trainer.history.epochs[-1]
    return {"miou": 100 * last.valid["miou"], "train_loss": last.train["loss"]}


def named(head: str, weights: str, trunk: str = "") -> str:
    return f"{HEADS[head]}, {weights} features{trunk}"


def epochs_of(updates: float) -> int:
    return max(1, round(updates / (IMAGES // BATCH)))


def classifier(setting: Setting) -> Recipe:
    """At tiny scale: of images with one shape each."""
    epochs = epochs_of(setting.updates)
    return Recipe(
        # small initial weights take some thousand updates before a shape is told from another
        model=Model(name="swin_nano_patch4_window4_32", options={"init": "xavier"}),
        data=Data(name="shapes", size=32, batch_size=BATCH, normalize="set", eval_crop=1.0, options={"count": IMAGES}, workers=0),
        augment=Augment(crop=PaddedCrop(padding=2)),
        optim=AdamW(lr=3e-3, weight_decay=0.05),
        schedule=Cosine(warmup=epochs / 10, final_lr=1e-5, per="update"),
        train=Settings(epochs=epochs, eval_every=10**6),
    )


def swin_t(setting: Setting) -> Recipe:
    """As `classifier`, of twice as many images."""
    recipe = classifier(longer(setting))
    epochs = max(1, recipe.train.epochs // 2)
    return replace(
        recipe,
        model=Model(name="swin_tiny_patch4_window4_32"),
        data=replace(recipe.data, options={"count": 2 * IMAGES, **UNSEEN}),
        optim=AdamW(lr=5e-4, weight_decay=0.05),
        schedule=replace(recipe.schedule, warmup=epochs / 14),
        train=replace(recipe.train, epochs=epochs, clip_norm=1.0, precision="bfloat16"),
    )


def swin_t_on_digits(setting: Setting) -> Recipe:
    """With random weights a Swin-T stays at chance for a thousand updates of shapes; one that reads digits leaves it at once."""
    recipe, epochs = swin_t(setting), max(1, round(DIGITS_SHARE * longer(setting).updates / (TINY_IMAGES // BATCH)))
    return replace(
        recipe,
        data=Data(name="digits", size=32, batch_size=BATCH, normalize="set", eval_crop=1.0, workers=0),
        schedule=replace(recipe.schedule, warmup=epochs / 8),
        train=replace(recipe.train, epochs=epochs),
    )


def longer(setting: Setting) -> Setting:
    return replace(setting, updates=round(LONGER * setting.updates))


def on_swin_t(setting: Setting, head: str) -> Recipe:
    recipe = segmentation(longer(setting), head)
    return replace(recipe, model=swin_t(setting).model, data=replace(recipe.data, options=recipe.data.options | UNSEEN))


def segmentation(setting: Setting, head: str) -> Recipe:
    """With a frozen trunk."""
    if setting.scale == "full":
        recipe = get_recipe("ade20k_upernet")
        recipe = replace(recipe, data=replace(recipe.data, path=setting.path), train=replace(recipe.train, eval_every=10**6))
    else:
        recipe, whole = get_recipe("shapes_segmentation"), classifier(setting)
        epochs = epochs_of(HEAD_SHARE * setting.updates)
        recipe = replace(
            recipe,
            model=whole.model,
            data=replace(recipe.data, size=32, batch_size=BATCH, options={"task": "segmentation", "objects": 1, "count": IMAGES}),
            augment=replace(recipe.augment, shortest=(32, 32)),
            task=replace(recipe.task, auxiliary=0.0),
            schedule=Cosine(warmup=epochs / 10, final_lr=1e-5, per="update"),
            train=Settings(epochs=epochs, eval_every=10**6, monitor="miou"),
        )
    return replace(recipe, task=replace(recipe.task, head=head, frozen=True))


def arms_of_swin_t(setting: Setting) -> list[Arm]:
    """At tiny scale, with UPerNet alone: an FCN has nothing to see, the last map of an image of 32 pixels is a single cell."""
    recipe = on_swin_t(setting, "upernet")
    return [
        Arm(name=SWIN_T_READER, recipe=swin_t_on_digits(setting), measure=accuracy, keep=True),
        Arm(name=SWIN_T, recipe=swin_t(setting), measure=accuracy, teacher=SWIN_T_READER, keep=True),
        Arm(name=named("upernet", "trained", OF_SWIN_T), recipe=recipe, measure=overlap, teacher=SWIN_T),
        Arm(name=named("upernet", "random", OF_SWIN_T), recipe=recipe, measure=overlap),
    ]


def claim(setting: Setting) -> Claim:
    """A segmentation head on frozen features of a trained classifier beats the same head on random features."""
    setting.check_data("shapes" if setting.scale == "tiny" else "ade20k")
    arms, begins, trunks = [], {"teacher": CLASSIFIER}, [(head, "") for head in HEADS]
    if setting.scale == "tiny":
        arms.append(Arm(name=CLASSIFIER, recipe=classifier(setting), measure=accuracy, keep=True))
    for head in HEADS:
        recipe = segmentation(setting, head)
        trained = recipe
        if setting.scale == "full":
            trained, begins = replace(recipe, model=replace(recipe.model, checkpoint=PRETRAINED)), {}
        arms.append(Arm(name=named(head, "trained"), recipe=trained, measure=overlap, **begins))
        arms.append(Arm(name=named(head, "random"), recipe=recipe, measure=overlap))
    if setting.scale == "tiny":
        arms += arms_of_swin_t(setting)
        trunks.append(("upernet", OF_SWIN_T))
    return Claim(
        name="frozen_features",
        title="Frozen features",
        says="What a classifier has learnt, left as it is, serves a segmentation head better than random weights do",
        source="what frozen backbones are used for; no figures are published",
        arms=tuple(arms),
        parts=tuple(
            more(f"{HEADS[head]}: trained features{trunk} beat random ones", named(head, "trained", trunk), named(head, "random", trunk), "miou")
            for head, trunk in trunks
        ),
        limits=(
            "The rates, and how long classifiers and heads learn, were chosen by runs on other images. Without a name the trunk is a Swin of 0.1 "
            "million parameters. Swin-T's classifier begins with weights that read digits, as from random ones it stayed at chance."
        ),
        metric="miou",
        label="mean intersection over union (%)",
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
