"""DeiT: vision transformers from scratch on ImageNet (arXiv:2012.12877), with the values of its code."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Mixup, RandAugment, RandomErasing
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import AdamW, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes._task import Classification, CrossEntropy, Distillation
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


def distilled(base: Recipe, name: str) -> Recipe:
    """A distillation token learns the class that a RegNetY-16GF (82.9 %) sees in the same mixed image."""
    task = Distillation(inner=base.task, teacher="timm:regnety_160.deit_in1k", form="hard", alpha=0.5)
    return replace(base, model=Model(name=name, drop_path=0.1), task=task)


@recipe
def deit_distilled() -> Recipe:
    """DeiT-B with a distillation token, hard; published: 83.4 %."""
    return distilled(deit(), "deit_base_distilled_patch16_224")


@recipe
def deit_small_distilled() -> Recipe:
    """DeiT-S with a distillation token, hard; published: 81.2 %."""
    return distilled(deit(), "deit_small_distilled_patch16_224")


@recipe
def deit_tiny_distilled() -> Recipe:
    """DeiT-Ti with a distillation token, hard; published: 74.5 %."""
    return distilled(deit(), "deit_tiny_distilled_patch16_224")


@recipe
def deit_distilled_1000() -> Recipe:
    """DeiT-B with a distillation token for 1000 epochs, before `deit_distilled_384`."""
    base = deit_distilled()
    return replace(base, train=replace(base.train, epochs=1000))


@recipe
def deit_distilled_no_token() -> Recipe:
    """DeiT-B whose one head learns labels and the teacher's classes; published: 83.0 %."""
    return distilled(deit(), "deit_base_patch16_224")


@recipe
def deit_distilled_soft() -> Recipe:
    """DeiT-B whose one head learns labels and the teacher's probabilities; published: 81.8 %."""
    base = deit_distilled_no_token()
    # the paper's values; its code has a temperature of 1, a weight of 0.5 and mean="elements" unless told otherwise
    return replace(base, task=replace(base.task, form="soft", alpha=0.1, temperature=3.0))
