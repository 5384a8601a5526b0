"""A segmentation head on the frozen features of a trained Swin-T beats the same head on those of a random one.

python -m benchmarks.claims.frozen_swin_t --seeds 3    images of 32 pixels; the full scale is that of frozen_features
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import TINY_IMAGES, accuracy
from benchmarks.claims.claim import Arm, Claim, Setting, more
from benchmarks.claims.command import main
from benchmarks.claims.frozen_features import BATCH, classifier, named, overlap, segmentation
from vtkernels.recipes import AdamW, Cosine, Data, Model, Recipe
from vtkernels.train import Settings

DIGITS, SHAPES, HEAD = "digits classifier", "shapes classifier", "upernet"
# updates of the shapes classifier, and the share of them that digits take before
UPDATES, DIGITS_SHARE = 640, 0.28


def shapes(setting: Setting) -> Recipe:
    recipe = classifier(setting)
    return replace(
        recipe,
        model=Model(name="swin_tiny_patch4_window4_32"),
        optim=AdamW(lr=5e-4, weight_decay=0.05),
        train=replace(recipe.train, clip_norm=1.0),
    )


def digits(setting: Setting) -> Recipe:
    """A Swin-T with random weights does not tell shapes within some hundred updates; one that reads digits does."""
    epochs = max(1, round(DIGITS_SHARE * setting.updates / (TINY_IMAGES // BATCH)))
    recipe = shapes(setting)
    return replace(
        recipe,
        data=Data(name="digits", size=32, batch_size=BATCH, normalize="set", eval_crop=1.0, workers=0),
        schedule=Cosine(warmup=epochs / 8, final_lr=1e-5, per="update"),
        train=Settings(epochs=epochs, clip_norm=1.0, eval_every=10**6),
    )


def claim(setting: Setting) -> Claim:
    """A segmentation head on the frozen features of a trained Swin-T beats the same head on those of a random one."""
    if setting.scale == "full":
        raise ValueError("--scale full: expected tiny for this claim; benchmarks.claims.frozen_features is the same at full scale")
    setting.check_data("shapes")
    recipe = segmentation(setting, HEAD, shapes(setting))
    trained, random = named(HEAD, "trained"), named(HEAD, "random")
    return Claim(
        name="frozen_swin_t",
        title="Frozen Swin-T",
        says="What a Swin-T has learnt as a classifier, left as it is, serves a segmentation head better than random weights do",
        source="what frozen backbones are used for; no figures are published",
        arms=(
            Arm(name=DIGITS, recipe=digits(setting), measure=accuracy, keep=True),
            Arm(name=SHAPES, recipe=shapes(setting), measure=accuracy, teacher=DIGITS, keep=True),
            Arm(name=trained, recipe=recipe, measure=overlap, teacher=SHAPES),
            Arm(name=random, recipe=recipe, measure=overlap),
        ),
        parts=(more("trained features beat random ones", trained, random, "miou"),),
        limits=(
            "The rates, and how long each part learns, were chosen by runs on other images. An FCN head has nothing to see: "
            "the last map of an image of 32 pixels is a single cell."
        ),
        metric="miou",
        label="mean intersection over union (%)",
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
