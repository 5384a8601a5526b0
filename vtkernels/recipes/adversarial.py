"""Adversarial training (arXiv:1706.06083) with the values of MadryLab's code. Both tables leave the net open: ResNet-50, as in its examples."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, PaddedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SGD
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Decay
from vtkernels.recipes._task import Adversarial
from vtkernels.train import Settings


@recipe
def adversarial_cifar() -> Recipe:
    """ResNet-50 on CIFAR-10, on the worst images within 8/255."""
    return Recipe(
        model=Model(name="resnet50_cifar"),
        data=Data(name="cifar10", size=32, batch_size=128, normalize="set", eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=4)),
        task=Adversarial(epsilon=8 / 255, step=2 / 255, steps=7),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=Decay(every=50, factor=0.1, per="epoch"),
        train=Settings(epochs=150),
    )


@recipe
def adversarial_imagenet() -> Recipe:
    """ResNet-50 on ImageNet, on the worst images within 4/255."""
    base = adversarial_cifar()
    return replace(
        base,
        model=Model(name="resnet50"),
        data=Data(name="imagenet", size=224, batch_size=256, eval_crop=0.875),
        augment=Augment(),
        # half the radius takes half the step; the table does not tell it
        task=Adversarial(epsilon=4 / 255, step=1 / 255, steps=7),
        optim=replace(base.optim, weight_decay=1e-4),
        train=Settings(epochs=200),
    )
