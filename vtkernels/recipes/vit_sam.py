"""Vision transformers by sharpness-aware minimisation, without strong augmentation (arXiv:2106.01548)."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Mixup, RandAugment, ResizedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import GSAM, SAM, AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine, Linear
from vtkernels.recipes._task import BinaryCrossEntropy, Classification
from vtkernels.train import Settings


@recipe
def vit_b16() -> Recipe:
    """ViT-B/16 on ImageNet by plain AdamW, 300 epochs of crops and flips; published: 74.6 %."""
    return Recipe(
        model=Model(name="vit_base_patch16_224"),
        # pixels in -1..1, and crops of 5 % of the area and more, as in the authors' other codes
        data=Data(name="imagenet", size=224, batch_size=4096, normalize="half", eval_crop=0.875),
        augment=Augment(crop=ResizedCrop(scale=(0.05, 1.0))),
        task=Classification(),
        optim=AdamW(lr=3e-3, weight_decay=0.3),
        schedule=Cosine(warmup_updates=10_000, prefix=True, per="update"),
        train=Settings(epochs=300, clip_norm=1.0),
    )


def with_sam(name: str, rho: float) -> Recipe:
    return replace(vit_b16(), model=Model(name=name), sam=SAM(rho=rho))


@recipe
def vit_sam() -> Recipe:
    """ViT-B/16 on ImageNet by SAM; published: 79.9 %."""
    return with_sam("vit_base_patch16_224", rho=0.2)


@recipe
def vit_b32_sam() -> Recipe:
    """ViT-B/32 on ImageNet by SAM; published: 73.6 %."""
    return with_sam("vit_base_patch32_224", rho=0.15)


@recipe
def vit_s8_sam() -> Recipe:
    """ViT-S/8 on ImageNet by SAM; published: 81.3 %."""
    return with_sam("vit_small_patch8_224", rho=0.15)


@recipe
def vit_s14_sam() -> Recipe:
    """ViT-S/14 on ImageNet by SAM; published: 78.8 %."""
    return with_sam("vit_small_patch14_224", rho=0.1)


@recipe
def vit_s16_sam() -> Recipe:
    """ViT-S/16 on ImageNet by SAM; published: 78.1 %."""
    return with_sam("vit_small_patch16_224", rho=0.1)


@recipe
def vit_s32_sam() -> Recipe:
    """ViT-S/32 on ImageNet by SAM; published: 70.5 %."""
    return with_sam("vit_small_patch32_224", rho=0.05)


def augmented(base: Recipe) -> Recipe:
    """With RandAugment and Mixup. Parts of ImageNet are --data.fraction 0.5, 0.25 and 0.1."""
    augment = replace(base.augment, policy=RandAugment(spec="rand-m15-n2-p1-mmax30"))
    return replace(base, augment=augment, mix=Mixup(mixup=0.5, cutmix=0.0))


@recipe
def vit_b16_augmented() -> Recipe:
    """ViT-B/16 on ImageNet by AdamW with RandAugment and Mixup; published: 79.6 %."""
    return augmented(vit_b16())


@recipe
def vit_b16_augmented_sam() -> Recipe:
    """ViT-B/16 on ImageNet by SAM with RandAugment and Mixup; published: 81.5 %."""
    return augmented(with_sam("vit_base_patch16_224", rho=0.05))


@recipe
def vit_b32_gsam() -> Recipe:
    """ViT-B/32 on ImageNet by GSAM, with the values of big_vision."""
    base = vit_b16()
    return replace(
        base,
        model=Model(name="vit_base_patch32_224", head_bias=-10.0),
        task=Classification(loss=BinaryCrossEntropy(threshold=None, sum_classes=True)),
        # published as 1e-3 of the weights a step, which does not follow the rate
        optim=AdamW(lr=3e-3, weight_decay=1e-3 / 3e-3, decayed="kernels"),
        sam=GSAM(rho_max=0.6, rho_min=0.1, alpha=0.6),
        schedule=Linear(warmup_updates=10_000, final_lr=0.01 * 3e-3, prefix=True, per="update"),
    )
