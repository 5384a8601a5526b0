"""FixMatch (arXiv:2001.07685): consistency of two views of images without labels, the simplest baseline of semi-supervised learning."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, PaddedCrop, RandAugment
from vtkernels.recipes._optim import AdamW
from vtkernels.recipes._recipe import Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes._task import FixMatch
from vtkernels.recipes._unlabelled import WeakAndStrong
from vtkernels.recipes.digits import smoke


@recipe
def fixmatch() -> Recipe:
    """The ViT of `smoke` on digits with 10 % of the labels: seven unlabelled images for each labelled one."""
    base = smoke()
    return replace(
        base,
        data=replace(base.data, fraction=0.1, batch_size=16),
        # the weak view moves the digit, by an eighth of its side as published
        augment=Augment(crop=PaddedCrop(padding=4), flip=0.0),
        unlabelled=WeakAndStrong(ratio=7, strong=RandAugment(spec="rand-m10-n2-p1")),
        task=FixMatch(threshold=0.95, weight=1.0),
        optim=AdamW(lr=1e-3, weight_decay=0.05),
        schedule=Cosine(warmup=2, final_lr=1e-5),
        train=replace(base.train, epochs=40, eval_every=10),
    )
