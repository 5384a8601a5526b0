"""DeiT III (arXiv:2204.07118), with the values of its code: simpler augmentation, binary cross-entropy and LAMB; then more pixels."""

from vtkernels.recipes._augment import Augment, Mixup, RandAugment, ThreeAugment
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import LAMB, AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes._task import BinaryCrossEntropy, Classification, CrossEntropy
from vtkernels.train import Settings


def from_scratch(name: str, size: int, lr: float, drop_path: float) -> Recipe:
    return Recipe(
        model=Model(name=name, drop_path=drop_path),
        data=Data(name="imagenet", size=size, batch_size=2048, eval_crop=1.0),
        # the published command runs two flags of ViT-S together; both are taken as given: repeated augmentation, and the loss below
        augment=Augment(policy=ThreeAugment(jitter=0.3), repeats=3),
        mix=Mixup(mixup=0.8, cutmix=1.0, prob=1.0, switch=0.5),
        # any smoothing would make every class a positive one
        task=Classification(loss=BinaryCrossEntropy(smoothing=0.0, threshold=0.0)),
        optim=LAMB(lr=lr, weight_decay=0.05, max_grad_norm=1.0),
        schedule=Cosine(warmup=5, warmup_lr=1e-6, final_lr=1e-5, per="epoch"),
        train=Settings(epochs=800),
    )


def more_pixels(name: str, size: int, drop_path: float, weights: str) -> Recipe:
    """From the weights of the first training; --model.checkpoint takes a run's folder instead."""
    return Recipe(
        model=Model(name=name, drop_path=drop_path, checkpoint=weights),
        data=Data(name="imagenet", size=size, batch_size=512, eval_crop=1.0),
        augment=Augment(policy=RandAugment(spec="rand-m9-mstd0.5-inc1")),
        mix=Mixup(mixup=0.8, cutmix=1.0, prob=1.0, switch=0.5),
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        optim=AdamW(lr=1e-5, weight_decay=0.1),
        schedule=Cosine(warmup=5, warmup_lr=1e-6, final_lr=1e-5, per="epoch"),
        train=Settings(epochs=20),
    )


@recipe
def deit_iii() -> Recipe:
    """ViT-B on ImageNet as DeiT III at 192 pixels, before `deit_iii_224`; published after that: 83.8 %."""
    return from_scratch("deit3_base_patch16_224", 192, lr=3e-3, drop_path=0.2)


@recipe
def deit_iii_small() -> Recipe:
    """ViT-S on ImageNet as DeiT III; published: 81.4 %."""
    return from_scratch("deit3_small_patch16_224", 224, lr=4e-3, drop_path=0.05)


@recipe
def deit_iii_large() -> Recipe:
    """ViT-L on ImageNet as DeiT III at 192 pixels, before `deit_iii_large_224`; published after that: 84.9 %."""
    return from_scratch("deit3_large_patch16_224", 192, lr=3e-3, drop_path=0.45)


@recipe
def deit_iii_huge() -> Recipe:
    """ViT-H on ImageNet as DeiT III at 154 pixels, before `deit_iii_huge_224`; published after that: 85.2 %."""
    # 160 as published leave a rim of 6 pixels that no patch of 14 covers
    return from_scratch("deit3_huge_patch14_224", 154, lr=3e-3, drop_path=0.6)


@recipe
def deit_iii_224() -> Recipe:
    """The ViT-B of `deit_iii` at 224 pixels; published: 83.8 %."""
    return more_pixels("deit3_base_patch16_224", 224, 0.2, "runs/deit_iii")


@recipe
def deit_iii_large_224() -> Recipe:
    """The ViT-L of `deit_iii_large` at 224 pixels; published: 84.9 %."""
    return more_pixels("deit3_large_patch16_224", 224, 0.45, "runs/deit_iii_large")


@recipe
def deit_iii_huge_224() -> Recipe:
    """The ViT-H of `deit_iii_huge` at 224 pixels; published: 85.2 %."""
    return more_pixels("deit3_huge_patch14_224", 224, 0.55, "runs/deit_iii_huge")


@recipe
def deit_iii_small_384() -> Recipe:
    """The ViT-S of `deit_iii_small` at 384 pixels; published: 83.4 %."""
    return more_pixels("deit3_small_patch16_224", 384, 0.0, "timm:deit3_small_patch16_224.fb_in1k")


@recipe
def deit_iii_384() -> Recipe:
    """The ViT-B of `deit_iii_224` at 384 pixels; published: 85.0 %."""
    return more_pixels("deit3_base_patch16_224", 384, 0.15, "timm:deit3_base_patch16_224.fb_in1k")


@recipe
def deit_iii_large_384() -> Recipe:
    """The ViT-L of `deit_iii_large_224` at 384 pixels; published: 85.8 %."""
    return more_pixels("deit3_large_patch16_224", 384, 0.4, "timm:deit3_large_patch16_224.fb_in1k")
