"""Models without attention on ImageNet: MLP-Mixer (arXiv:2105.01601), ResMLP (arXiv:2105.03404) and FNet (arXiv:2105.03824)."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Mixup, RandAugment, ResizedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import LAMB, AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Linear
from vtkernels.recipes._task import BinaryCrossEntropy, Classification
from vtkernels.recipes.deit import deit, deit_small
from vtkernels.train import Settings


@recipe
def mixer() -> Recipe:
    """Mixer-B/16 on ImageNet, with the values of big_vision; published: 76.3 %."""
    return Recipe(
        model=Model(name="mixer_b16_224", drop_path=0.1, head_bias=-6.9),
        data=Data(name="imagenet", size=224, batch_size=4096, normalize="half", eval_crop=0.875),
        # two operations of magnitude 15, always
        augment=Augment(crop=ResizedCrop(scale=(0.05, 1.0)), policy=RandAugment(spec="rand-m15-n2-p1-mmax30")),
        mix=Mixup(mixup=0.5, cutmix=0.0),
        # the code's usual loss on ImageNet
        task=Classification(loss=BinaryCrossEntropy(threshold=None, sum_classes=True)),
        # published as 1e-4 of the weights a step, which does not follow the rate of 1e-3
        optim=AdamW(lr=1e-3, weight_decay=0.1, decayed="kernels"),
        schedule=Linear(warmup_updates=10_000, final_lr=1e-5, prefix=True, per="update"),
        train=Settings(epochs=300, clip_norm=1.0),
    )


@recipe
def resmlp() -> Recipe:
    """ResMLP-S24 on ImageNet; published: 79.4 %."""
    base = deit()
    return replace(
        base,
        model=Model(name="resmlp_24_224", drop_path=0.1),
        # from the paper's text, which tells rate, decay and epochs; all else is DeiT's
        optim=LAMB(lr=5e-3, weight_decay=0.2),
        train=replace(base.train, epochs=400),
    )


@recipe
def resmlp_12() -> Recipe:
    """ResMLP-S12 on ImageNet; published: 76.6 %."""
    return replace(resmlp(), model=Model(name="resmlp_12_224", drop_path=0.1))


@recipe
def fnet() -> Recipe:
    """FNet with the sizes of ViT-S on ImageNet by DeiT's recipe; the paper is about text, no figure is published."""
    return replace(deit_small(), model=Model(name="fnet_small_patch16_224", drop_path=0.1))
