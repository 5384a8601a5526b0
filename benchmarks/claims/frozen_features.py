"""A segmentation head on frozen features of a trained classifier beats the same head on random features.

python -m benchmarks.claims.frozen_features                                      a small Swin that has learnt to name drawn shapes
python -m benchmarks.claims.frozen_features --scale full --path DATA/ade20k      timm's Swin-T of ImageNet, UPerNet on ADE20K, on GPUs
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import accuracy
from benchmarks.claims.claim import Arm, Claim, Metrics, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import AdamW, Augment, Cosine, Data, Model, PaddedCrop, Recipe, get_recipe
from vtkernels.train import Settings, Trainer

CLASSIFIER, HEADS = "classifier", {"upernet": "UPerNet", "fcn": "FCN"}
PRETRAINED = "timm:swin_tiny_patch4_window7_224.ms_in1k"
# updates of the classifier, and the share of them that a head takes
UPDATES, HEAD_SHARE = 1024, 0.5
IMAGES, BATCH = 2048, 32


def overlap(trainer: Trainer, recipe: Recipe) -> Metrics:
    """Mean intersection over union of the test images, in percent, after the last epoch."""
    last = trainer.history.epochs[-1]
    return {"miou": 100 * last.valid["miou"], "train_loss": last.train["loss"]}


def named(head: str, trunk: str) -> str:
    return f"{HEADS[head]}, {trunk} features"


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


def claim(setting: Setting) -> Claim:
    """A segmentation head on frozen features of a trained classifier beats the same head on random features."""
    setting.check_data("shapes" if setting.scale == "tiny" else "ade20k")
    arms, begins = [], {"teacher": CLASSIFIER}
    if setting.scale == "tiny":
        arms.append(Arm(name=CLASSIFIER, recipe=classifier(setting), measure=accuracy, keep=True))
    for head in HEADS:
        recipe = segmentation(setting, head)
        trained = recipe
        if setting.scale == "full":
            trained, begins = replace(recipe, model=replace(recipe.model, checkpoint=PRETRAINED)), {}
        arms.append(Arm(name=named(head, "trained"), recipe=trained, measure=overlap, **begins))
        arms.append(Arm(name=named(head, "random"), recipe=recipe, measure=overlap))
    return Claim(
        name="frozen_features",
        title="Frozen features",
        says="What a classifier has learnt, left as it is, serves a segmentation head better than random weights do",
        source="what frozen backbones are used for; no figures are published",
        arms=tuple(arms),
        parts=tuple(more(f"{name}: trained features beat random ones", named(head, "trained"), named(head, "random"), "miou") for head, name in HEADS.items()),
        limits="The rates, and how long classifier and heads learn, were chosen by one run of each on other images.",
        metric="miou",
        label="mean intersection over union (%)",
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
