"""CvT (arXiv:2103.15808) from scratch on ImageNet, with the values of its code, whose rates grow with the number of processes."""

from dataclasses import replace

from vtkernels.recipes._optim import AdamW, PerProcess
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes.swin import swin_t
from vtkernels.train import Settings


@recipe
def cvt() -> Recipe:
    """CvT-13 on ImageNet, on eight processes of 256 images; published: 81.6 %."""
    base = swin_t()
    return replace(
        base,
        # the last stage alone drops paths
        model=Model(name="cvt_13", drop_path=0.1),
        data=replace(base.data, batch_size=2048),
        optim=AdamW(lr=2.5e-4, weight_decay=0.05, scaling=PerProcess()),
        schedule=Cosine(warmup=5, warmup_lr=1e-6, final_lr=1e-5, per="epoch"),
        train=Settings(epochs=300),
    )


@recipe
def cvt_21() -> Recipe:
    """CvT-21 on ImageNet, on eight processes of 128 images; published: 82.5 %."""
    base = cvt()
    return replace(
        base,
        model=Model(name="cvt_21", drop_path=0.1),
        data=replace(base.data, batch_size=1024),
        optim=replace(base.optim, lr=1.25e-4, weight_decay=0.1),
    )
