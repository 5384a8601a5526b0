"""MLP-Mixers and ResNets by sharpness-aware minimisation, without strong augmentation (arXiv:2106.01548)."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, ResizedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SAM, SGD, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine, Linear
from vtkernels.recipes.vit_sam import augmented, vit_b16
from vtkernels.train import Settings


@recipe
def mixer_b16() -> Recipe:
    """Mixer-B/16 on ImageNet by plain AdamW, 300 epochs of crops and flips; published: 66.4 %."""
    return replace(vit_b16(), model=Model(name="mixer_b16_224"), schedule=Linear(warmup_updates=10_000, prefix=True, per="update"))


@recipe
def resnet152_inception() -> Recipe:
    """ResNet-152 on ImageNet by plain SGD, 90 epochs of crops and flips; published: 78.5 %."""
    return Recipe(
        model=Model(name="resnet152"),
        # pixels in -1..1, and crops of 5 % of the area and more, as in the authors' other codes
        data=Data(name="imagenet", size=224, batch_size=4096, normalize="half", eval_crop=0.875),
        augment=Augment(crop=ResizedCrop(scale=(0.05, 1.0))),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=1e-3, scaling=PerSamples(reference=256)),
        schedule=Cosine(warmup_updates=5_000, prefix=True, per="update"),
        train=Settings(epochs=90),
    )


@recipe
def mixer_b16_augmented() -> Recipe:
    """Mixer-B/16 on ImageNet by AdamW with RandAugment and Mixup; published: 76.5 %."""
    return augmented(mixer_b16())


@recipe
def resnet152_augmented() -> Recipe:
    """ResNet-152 on ImageNet by SGD with RandAugment and Mixup; published: 78.8 %."""
    return augmented(resnet152_inception())


def with_sam(base: Recipe, name: str, rho: float) -> Recipe:
    return replace(base, model=Model(name=name), sam=SAM(rho=rho))


@recipe
def mixer_sam() -> Recipe:
    """Mixer-B/16 on ImageNet by SAM; published: 77.4 %."""
    return with_sam(mixer_b16(), "mixer_b16_224", rho=0.6)


@recipe
def mixer_b32_sam() -> Recipe:
    """Mixer-B/32 on ImageNet by SAM; published: 72.4 %."""
    return with_sam(mixer_b16(), "mixer_b32_224", rho=0.35)


@recipe
def mixer_b8_sam() -> Recipe:
    """Mixer-B/8 on ImageNet by SAM; published: 79.0 %."""
    return with_sam(mixer_b16(), "mixer_b8_224", rho=0.6)


@recipe
def mixer_s32_sam() -> Recipe:
    """Mixer-S/32 on ImageNet by SAM; published: 66.7 %."""
    return with_sam(mixer_b16(), "mixer_s32_224", rho=0.1)


@recipe
def mixer_s16_sam() -> Recipe:
    """Mixer-S/16 on ImageNet by SAM; published: 72.9 %."""
    return with_sam(mixer_b16(), "mixer_s16_224", rho=0.15)


@recipe
def mixer_s8_sam() -> Recipe:
    """Mixer-S/8 on ImageNet by SAM; published: 75.9 %."""
    return with_sam(mixer_b16(), "mixer_s8_224", rho=0.2)


@recipe
def resnet_sam() -> Recipe:
    """ResNet-152 on ImageNet by SAM; published: 79.3 %."""
    return with_sam(resnet152_inception(), "resnet152", rho=0.02)


@recipe
def resnet50_sam() -> Recipe:
    """ResNet-50 on ImageNet by SAM; published: 76.7 %."""
    return with_sam(resnet152_inception(), "resnet50", rho=0.02)


@recipe
def resnet101_sam() -> Recipe:
    """ResNet-101 on ImageNet by SAM; published: 78.6 %."""
    return with_sam(resnet152_inception(), "resnet101", rho=0.05)


@recipe
def resnet50x2_sam() -> Recipe:
    """ResNet-50x2 on ImageNet by SAM; published: 79.6 %."""
    return with_sam(resnet152_inception(), "resnet50x2", rho=0.05)


@recipe
def resnet101x2_sam() -> Recipe:
    """ResNet-101x2 on ImageNet by SAM; published: 80.9 %."""
    return with_sam(resnet152_inception(), "resnet101x2", rho=0.05)


@recipe
def resnet152x2_sam() -> Recipe:
    """ResNet-152x2 on ImageNet by SAM; published: 81.1 %."""
    return with_sam(resnet152_inception(), "resnet152x2", rho=0.05)
