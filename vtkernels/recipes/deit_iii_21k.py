"""DeiT III (arXiv:2204.07118) by way of ImageNet-21k, with the values of its code: many classes first, then ImageNet's."""

from dataclasses import replace

from vtkernels.recipes._augment import PaddedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._task import Classification, CrossEntropy
from vtkernels.recipes.deit_iii import from_scratch


def pretrained(name: str, drop_path: float, size: int = 224, epochs: int = 240) -> Recipe:
    # the size of the images is told for ViT-H alone
    base = from_scratch(name, size, lr=1e-3, drop_path=drop_path)
    return replace(
        base,
        data=Data(name="imagenet-21k", size=size, batch_size=2048, eval_crop=1.0),
        # of the resized image a crop of its own size, moved by four pixels at most
        augment=replace(base.augment, crop=PaddedCrop(padding=4, mode="reflect", resize=True), repeats=1),
        mix=replace(base.mix, mixup=0.0),
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        optim=replace(base.optim, weight_decay=0.02),
        train=replace(base.train, epochs=epochs),
    )


def tuned(name: str, drop_path: float, run: str) -> Recipe:
    """From the run of the first stage; --model.checkpoint takes other weights."""
    base = pretrained(name, drop_path, epochs=50)
    return replace(
        base,
        model=Model(name=name, drop_path=drop_path, checkpoint=run),
        data=replace(base.data, name="imagenet"),
        optim=replace(base.optim, lr=3e-4),
    )


@recipe
def deit_iii_small_21k() -> Recipe:
    """ViT-S on ImageNet-21k as DeiT III, before `deit_iii_small_21k_1k`."""
    return pretrained("deit3_small_patch16_224", drop_path=0.05)


@recipe
def deit_iii_21k() -> Recipe:
    """ViT-B on ImageNet-21k as DeiT III, before `deit_iii_21k_1k`."""
    return pretrained("deit3_base_patch16_224", drop_path=0.1)


@recipe
def deit_iii_large_21k() -> Recipe:
    """ViT-L on ImageNet-21k as DeiT III, before `deit_iii_large_21k_1k`."""
    return pretrained("deit3_large_patch16_224", drop_path=0.3)


@recipe
def deit_iii_huge_21k() -> Recipe:
    """ViT-H on ImageNet-21k as DeiT III at 126 pixels, before `deit_iii_huge_21k_1k`."""
    # 128 as published leave a rim of 2 pixels that no patch of 14 covers
    return pretrained("deit3_huge_patch14_224", drop_path=0.5, size=126, epochs=90)


@recipe
def deit_iii_small_21k_1k() -> Recipe:
    """The ViT-S of `deit_iii_small_21k` on ImageNet; published: 83.1 %."""
    return tuned("deit3_small_patch16_224", 0.05, "runs/deit_iii_small_21k")


@recipe
def deit_iii_21k_1k() -> Recipe:
    """The ViT-B of `deit_iii_21k` on ImageNet; published: 85.7 %."""
    return tuned("deit3_base_patch16_224", 0.15, "runs/deit_iii_21k")


@recipe
def deit_iii_large_21k_1k() -> Recipe:
    """The ViT-L of `deit_iii_large_21k` on ImageNet; published: 87.0 %."""
    return tuned("deit3_large_patch16_224", 0.4, "runs/deit_iii_large_21k")


@recipe
def deit_iii_huge_21k_1k() -> Recipe:
    """The ViT-H of `deit_iii_huge_21k` on ImageNet at 224 pixels; published: 87.2 %."""
    return tuned("deit3_huge_patch14_224", 0.45, "runs/deit_iii_huge_21k")
