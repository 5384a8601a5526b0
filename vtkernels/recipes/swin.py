"""Swin transformers from scratch on ImageNet (arXiv:2103.14030), with the values of their code."""

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


def second(name: str, drop_path: float) -> Recipe:
    """Swin V2 (arXiv:2111.09883) at 256 pixels. The tables have its accuracies beside Swin's values."""
    base = swin_t()
    return replace(base, model=Model(name=name, drop_path=drop_path), data=replace(base.data, size=256))


@recipe
def swinv2_t() -> Recipe:
    """SwinV2-T with windows of 8 on ImageNet; published: 81.8 %."""
    return second("swinv2_tiny_window8_256", drop_path=0.2)


@recipe
def swinv2_s() -> Recipe:
    """SwinV2-S with windows of 8 on ImageNet; published: 83.7 %."""
    return second("swinv2_small_window8_256", drop_path=0.3)


@recipe
def swinv2_b() -> Recipe:
    """SwinV2-B with windows of 8 on ImageNet; published: 84.2 %."""
    return second("swinv2_base_window8_256", drop_path=0.5)
