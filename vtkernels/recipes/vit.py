"""ViT as published (arXiv:2010.11929): on ImageNet, on ImageNet-21k before `finetune`, and with the values of big_vision."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Mixup, RandAugment, ResizedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine, Linear
from vtkernels.recipes._task import BinaryCrossEntropy, Classification
from vtkernels.recipes.mlp import mixer
from vtkernels.train import Settings


@recipe
def vit() -> Recipe:
    """ViT-B/16 on ImageNet for 300 epochs of crops and flips; published: 74.8 %."""
    return Recipe(
        model=Model(name="vit_base_patch16_224", options={"dropout": 0.1}),
        # pixels in -1..1, and crops of 5 % of the area and more, as in the authors' other codes
        data=Data(name="imagenet", size=224, batch_size=4096, normalize="half", eval_crop=0.875),
        augment=Augment(crop=ResizedCrop(scale=(0.05, 1.0))),
        task=Classification(),
        optim=AdamW(lr=3e-3, weight_decay=0.3),
        schedule=Cosine(warmup=3.4, prefix=True, per="update"),
        train=Settings(epochs=300, clip_norm=1.0),
    )


@recipe
def vit_21k() -> Recipe:
    """ViT-B/16 on ImageNet-21k, before `finetune` and its variants."""
    base = vit()
    return replace(
        base,
        # the layer of 768 channels before the classifier is left out: it ends with this training
        model=replace(base.model, head_bias=-10.0),
        data=replace(base.data, name="imagenet-21k"),
        # such a bias is that of sigmoids
        task=Classification(loss=BinaryCrossEntropy(threshold=None, sum_classes=True)),
        # "Adam" in the source, whose code decouples the decay
        optim=AdamW(lr=1e-3, weight_decay=0.03),
        schedule=Linear(warmup_updates=10_000, final_lr=1e-5, prefix=True, per="update"),
        train=replace(base.train, epochs=90),
    )


@recipe
def vit_big_vision() -> Recipe:
    """ViT-B/16 on ImageNet, with the values of big_vision."""
    base = mixer()
    # its augmentation is not told: that of the same code's Mixer
    model, schedule = Model(name="vit_base_patch16_224", head_bias=-6.9), Cosine(warmup_updates=10_000, prefix=True, per="update")
    return replace(base, model=model, schedule=schedule)


@recipe
def vit_s16_big_vision() -> Recipe:
    """ViT-S/16 on ImageNet for 90 epochs, with the values of big_vision; published: 76.5 %."""
    base = vit_big_vision()
    return replace(
        base,
        model=replace(base.model, name="vit_small_patch16_224"),
        data=replace(base.data, batch_size=1024),
        # two operations of magnitude 10, always
        augment=replace(base.augment, policy=RandAugment(spec="rand-m10-n2-p1-mmax30")),
        mix=Mixup(mixup=0.2, cutmix=0.0),
        train=replace(base.train, epochs=90),
    )
