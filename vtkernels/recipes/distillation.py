"""A student of a teacher's answers: knowledge distillation (arXiv:1503.02531) of convolutional nets."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, PaddedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SGD, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Steps
from vtkernels.recipes._task import Classification, Distillation
from vtkernels.train import Settings


@recipe
def kd() -> Recipe:
    """ResNet-18 on ImageNet from a ResNet-34's probabilities; another teacher: --task.teacher."""
    return Recipe(
        model=Model(name="resnet18"),
        data=Data(name="imagenet", size=224, batch_size=256, eval_crop=0.875),
        augment=Augment(),
        # 4 and 0.9 are the values of common codes, not of a paper
        task=Distillation(inner=Classification(), teacher="timm:resnet34.tv_in1k", form="soft", alpha=0.9, temperature=4.0),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, scaling=PerSamples(reference=256)),
        schedule=Steps(at=(1 / 3, 2 / 3), factor=0.1, per="epoch"),
        train=Settings(epochs=90),
    )


@recipe
def kd_hard() -> Recipe:
    """ResNet-18 on ImageNet from a ResNet-34's classes, which count as much as the labels."""
    base = kd()
    return replace(base, task=replace(base.task, form="hard", alpha=0.5, temperature=1.0))


@recipe
def kd_cifar() -> Recipe:
    """ResNet-18 on CIFAR from the probabilities of a run: --task.teacher FOLDER."""
    base = kd()
    return replace(
        base,
        model=Model(name="resnet18_cifar"),
        data=Data(name="cifar10", size=32, batch_size=128, normalize="set", eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=4)),
        task=replace(base.task, teacher=None),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=Steps(at=(1 / 2, 3 / 4), factor=0.1, per="epoch"),
        train=Settings(epochs=200),
    )
