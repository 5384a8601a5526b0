"""DeiT: vision transformers from scratch on ImageNet (arXiv:2012.12877), with the values of its code."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Mixup, RandAugment, RandomErasing
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import AdamW, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes._task import Classification, CrossEntropy
from vtkernels.train import Settings


@recipe
def deit() -> Recipe:
    """DeiT-B on ImageNet for 300 epochs; published: 81.8 %."""
    return Recipe(
        model=Model(name="deit_base_patch16_224", drop_path=0.1),
        data=Data(name="imagenet", size=224, batch_size=1024, eval_crop=0.875),
        # its colour jitter of 0.3 is inactive beside RandAugment
        augment=Augment(policy=RandAugment(spec="rand-m9-mstd0.5-inc1"), repeats=3),
        mix=Mixup(mixup=0.8, cutmix=1.0, prob=1.0, switch=0.5),
        erase=RandomErasing(prob=0.25, mode="pixel", count=1),
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        optim=AdamW(lr=5e-4, weight_decay=0.05, scaling=PerSamples(reference=512)),
        # of its 10 epochs of cooldown none is run
        schedule=Cosine(warmup=5, warmup_lr=1e-6, final_lr=1e-5, per="epoch"),
        train=Settings(epochs=300, ema_decay=0.99996),
    )


@recipe
def deit_small() -> Recipe:
    """DeiT-S on ImageNet; published: 79.9 %."""
    return replace(deit(), model=Model(name="deit_small_patch16_224", drop_path=0.1))


@recipe
def deit_tiny() -> Recipe:
    """DeiT-Ti on ImageNet; published: 72.2 %."""
    return replace(deit(), model=Model(name="deit_tiny_patch16_224", drop_path=0.1))
