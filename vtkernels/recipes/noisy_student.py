"""Noisy Student (arXiv:1911.04252), with the values of its code: `vtkernels noisy-student RECIPE` trains a teacher and three students.

A recipe here is the student's. Its teacher is the same without the pseudo-labelled images. Each takes other unlabelled images by
--unlabelled.name and --unlabelled.path; the 300 million of the paper were never published.
"""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, RandAugment
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import AdamW, PerSamples, RMSprop
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine, Decay
from vtkernels.recipes._task import NoisyStudent
from vtkernels.recipes._unlabelled import PseudoLabelled
from vtkernels.recipes.digits import smoke
from vtkernels.train import Settings


def student(name: str, size: int, magnitude: int, *, ratio: int = 3, train_ratio: int = 1) -> Recipe:
    """`train_ratio`: of the epochs to the usual 350; the schedule is stretched with them."""
    return Recipe(
        # dropout before the head, and depth that survives with 0.8 at the end, are half of the noise
        model=Model(name=name, drop_path=0.2, options={"dropout": 0.5}),
        data=Data(name="imagenet", size=size, batch_size=4096, eval_crop=0.875),
        unlabelled=PseudoLabelled(ratio=ratio, form="soft", confidence=0.3, per_class=130_000),
        augment=Augment(policy=randaugment(magnitude)),
        task=NoisyStudent(smoothing=0.1, temperature=1.0),
        optim=RMSprop(lr=0.016, weight_decay=1e-5, scaling=PerSamples(reference=256)),
        schedule=Decay(warmup=5, every=2.4 * train_ratio, factor=0.97),
        train=Settings(epochs=350 * train_ratio, ema_decay=0.9999),
    )


def randaugment(magnitude: int) -> RandAugment:
    """Both operations always, at magnitudes beyond the usual 10."""
    return RandAugment(spec=f"rand-m{magnitude}-n2-p1-mmax30")


@recipe
def noisy_student() -> Recipe:
    """EfficientNet-B7 on ImageNet and unlabelled images; published: 86.9 %."""
    return student("efficientnet_b7", 600, 27)


@recipe
def noisy_student_b0() -> Recipe:
    """EfficientNet-B0 on ImageNet and unlabelled images; published: 78.8 %."""
    # magnitudes are published from B2 on: that of B2
    return student("efficientnet_b0", 224, 6, ratio=1, train_ratio=2)


@recipe
def noisy_student_b1() -> Recipe:
    """EfficientNet-B1 on ImageNet and unlabelled images; published: 81.5 %."""
    return student("efficientnet_b1", 240, 6, train_ratio=2)


@recipe
def noisy_student_b2() -> Recipe:
    """EfficientNet-B2 on ImageNet and unlabelled images; published: 82.4 %."""
    return student("efficientnet_b2", 260, 6, train_ratio=2)


@recipe
def noisy_student_b3() -> Recipe:
    """EfficientNet-B3 on ImageNet and unlabelled images; published: 84.1 %."""
    return student("efficientnet_b3", 300, 12, train_ratio=2)


@recipe
def noisy_student_b4() -> Recipe:
    """EfficientNet-B4 on ImageNet and unlabelled images; published: 85.3 %."""
    return student("efficientnet_b4", 380, 15, train_ratio=2)


@recipe
def noisy_student_b5() -> Recipe:
    """EfficientNet-B5 on ImageNet and unlabelled images; published: 86.1 %."""
    return student("efficientnet_b5", 456, 18)


@recipe
def noisy_student_b6() -> Recipe:
    """EfficientNet-B6 on ImageNet and unlabelled images; published: 86.4 %."""
    return student("efficientnet_b6", 528, 24)


@recipe
def noisy_student_svhn() -> Recipe:
    """EfficientNet-B0 on SVHN and its extra images; published: 98.6 %, its teacher 97.9 %."""
    base = noisy_student_b0()
    return replace(
        base,
        data=Data(name="svhn", size=32, batch_size=128, normalize="set", eval_crop=1.0),
        unlabelled=replace(base.unlabelled, ratio=5, name="svhn", split="extra"),
        augment=Augment(policy=randaugment(5), flip=0.0),
        optim=replace(base.optim, weight_decay=1e-4),
    )


@recipe
def noisy_student_digits() -> Recipe:
    """The ViT of `smoke` on digits of 16 pixels with 10 % of the labels."""
    base = smoke()
    return replace(
        base,
        model=replace(base.model, drop_path=0.1),
        # twice the size of the originals
        data=replace(base.data, size=16, fraction=0.1, batch_size=16),
        # all 1298 images left over, but for those that no teacher is sure of
        unlabelled=PseudoLabelled(ratio=3, form="soft", confidence=0.3, per_class=130),
        # a digit of eight pixels is lost under two operations
        augment=replace(base.augment, policy=RandAugment(spec="rand-m3-n1-p0.5")),
        task=NoisyStudent(smoothing=0.1, temperature=1.0),
        optim=AdamW(lr=2e-3, weight_decay=0.05),
        schedule=Cosine(warmup=2, final_lr=1e-5),
        train=replace(base.train, epochs=40, eval_every=10),
    )
