"""Swin transformers: from scratch on ImageNet (arXiv:2103.14030), and on small images at their own size (arXiv:2112.13492)."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, AutoAugment, Mixup, PaddedCrop, RandAugment, RandomErasing
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import AdamW, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes._task import Classification, CrossEntropy
from vtkernels.train import Settings


@recipe
def swin_t() -> Recipe:
    """Swin-T on ImageNet for 300 epochs; published: 81.2 %."""
    return Recipe(
        model=Model(name="swin_tiny_patch4_window7_224", drop_path=0.2),
        data=Data(name="imagenet", size=224, batch_size=1024, eval_crop=0.875),
        # its colour jitter of 0.4 is inactive beside RandAugment
        augment=Augment(policy=RandAugment(spec="rand-m9-mstd0.5-inc1")),
        mix=Mixup(mixup=0.8, cutmix=1.0, prob=1.0, switch=0.5),
        erase=RandomErasing(prob=0.25, mode="pixel", count=1),
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        optim=AdamW(lr=5e-4, weight_decay=0.05, scaling=PerSamples(reference=512, ends=True)),
        schedule=Cosine(warmup=20, warmup_lr=5e-7, final_lr=5e-6, prefix=True, per="update"),
        train=Settings(epochs=300, clip_norm=5.0),
    )


@recipe
def swin_s() -> Recipe:
    """Swin-S on ImageNet; published: 83.2 %."""
    return replace(swin_t(), model=Model(name="swin_small_patch4_window7_224", drop_path=0.3))


@recipe
def swin_b() -> Recipe:
    """Swin-B on ImageNet; published: 83.5 %."""
    return replace(swin_t(), model=Model(name="swin_base_patch4_window7_224", drop_path=0.5))


@recipe
def swin_small_data() -> Recipe:
    """A Swin of 7 million parameters on CIFAR at 32 pixels, from scratch; published: CIFAR-10 94.5 %, CIFAR-100 76.9 %."""
    return Recipe(
        model=Model(name="swin_small_data_patch2_window4_32", drop_path=0.1),
        data=Data(name="cifar10", size=32, batch_size=128, normalize="set", eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=4), policy=AutoAugment(policy="cifar")),
        mix=Mixup(mixup=1.0, cutmix=1.0, prob=0.5, switch=0.5, partner="permutation"),
        # zeros are the mean colour of normalised images
        erase=RandomErasing(prob=0.25, area=(0.02, 0.4), aspect=0.3, mode="const"),
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        optim=AdamW(lr=1e-3, weight_decay=0.05, decayed="all"),
        # its 100 epochs and 10 of warm-up visit the set three times each
        schedule=Cosine(warmup=30, warmup_lr=1e-6, final_lr=1e-6, per="update"),
        train=Settings(epochs=300),
    )
