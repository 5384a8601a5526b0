"""DeiT's ablations: what its training loses without each of its parts.

python -m benchmarks.claims.ablation                                      smallest ViT on digits
python -m benchmarks.claims.ablation --scale full --path DATA/imagenet    DeiT-S, on GPUs
"""

import sys
from dataclasses import replace

from benchmarks.claims.arms import accuracy, sized
from benchmarks.claims.claim import Arm, Claim, Setting, more
from benchmarks.claims.command import main
from vtkernels.recipes import SGD, AutoAugment, Classification, PerSamples, get_recipe

BASE = "DeiT"
# of a run of so few updates, an average over the last ones: DeiT's covers the last twelfth of its training
TINY_DECAY = 0.985
# by a third of it the model has hardly learnt
UPDATES = 810


def claim(setting: Setting) -> Claim:
    """DeiT's ablations: what its training loses without each of its parts."""
    averaged = get_recipe("deit_small")
    deit = replace(averaged, train=replace(averaged.train, ema_decay=None))
    if setting.scale == "tiny":
        averaged = replace(averaged, train=replace(averaged.train, ema_decay=TINY_DECAY))
    augment, mix, model = deit.augment, deit.mix, deit.model
    without = {
        "stochastic depth": replace(deit, model=replace(model, drop_path=0.0)),
        "label smoothing": replace(deit, task=Classification()),
        "RandAugment": replace(deit, augment=replace(augment, policy=None)),
        "Mixup": replace(deit, mix=replace(mix, mixup=0.0)),
        "CutMix": replace(deit, mix=replace(mix, cutmix=0.0)),
        "Mixup and CutMix": replace(deit, mix=None),
        "random erasing": replace(deit, erase=None),
        "repeated augmentation": replace(deit, augment=replace(augment, repeats=1)),
    }
    instead = {
        "AutoAugment for RandAugment": replace(deit, augment=replace(augment, policy=AutoAugment())),
        "SGD for AdamW": replace(deit, optim=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, scaling=PerSamples(reference=256))),
        "dropout too": replace(deit, model=replace(model, options={**model.options, "dropout": 0.1})),
    }
    recipes = {BASE: deit, **{f"no {name}": recipe for name, recipe in without.items()}, **instead, "average of weights too": averaged}
    parts = [more(f"{name} helps", BASE, f"no {name}") for name in without]
    parts += [more("RandAugment beats AutoAugment", BASE, "AutoAugment for RandAugment"), more("AdamW beats SGD", BASE, "SGD for AdamW")]
    parts += [more("dropout does not help", BASE, "dropout too"), more("an average of weights helps", "average of weights too", BASE)]
    return Claim(
        name="ablation",
        title="DeiT's ablations",
        says="Each part of DeiT's training helps, AdamW and RandAugment more than SGD and AutoAugment; dropout does not; averaged weights do a little",
        source="arXiv:2012.12877, table 8",
        arms=tuple(Arm(name=name, recipe=sized(recipe, setting, augmented=True), measure=accuracy) for name, recipe in recipes.items()),
        parts=tuple(parts),
        limits=(
            "In eighteen epochs strong augmentation slows learning more than it prevents overfitting. SGD's rate is the one of all tiny recipes, 0.05; "
            "rates from 0.005 to 0.15 were no better by another seed."
        ),
    )


if __name__ == "__main__":
    sys.exit(main(claim, updates=UPDATES))
