"""ResNets as baselines: on ImageNet (arXiv:1512.03385) and on CIFAR, by SGD with weight decay in the gradient or decoupled from it."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Cutout, Mixup, PaddedCrop, RandomErasing
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SGD, SGDW, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Steps
from vtkernels.recipes._task import Classification
from vtkernels.train import Settings

# set -> edge of the square
CUTOUT = {"cifar10": 16, "cifar100": 8}


@recipe
def resnet50() -> Recipe:
    """ResNet-50 on ImageNet for 90 epochs; published: 76.1 %."""
    return Recipe(
        model=Model(name="resnet50"),
        data=Data(name="imagenet", size=224, batch_size=256, eval_crop=0.875),
        augment=Augment(),
        task=Classification(),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, scaling=PerSamples(reference=256)),
        schedule=Steps(at=(1 / 3, 2 / 3), factor=0.1, per="epoch"),
        train=Settings(epochs=90),
    )


@recipe
def resnet50_sgdw() -> Recipe:
    """ResNet-50 on ImageNet by SGD with decoupled weight decay."""
    # no source tells its decay: momentum of 0.9 makes ten times as much of one that is part of the gradient
    return replace(resnet50(), optim=SGDW(lr=0.1, momentum=0.9, weight_decay=1e-3, scaling=PerSamples(reference=256)))


@recipe
def resnet_cifar() -> Recipe:
    """ResNet-18 on CIFAR for 200 epochs; published: CIFAR-10 4.7 % error."""
    return Recipe(
        model=Model(name="resnet18_cifar"),
        data=Data(name="cifar10", size=32, batch_size=128, normalize="set", eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=4)),
        task=Classification(),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        # the table has no schedule: as in the code of Sharpness-Aware Minimization for PyTorch
        schedule=Steps(at=(0.3, 0.6, 0.8), factor=0.2, per="epoch"),
        train=Settings(epochs=200),
    )


@recipe
def resnet_cifar_sgdw() -> Recipe:
    """ResNet-18 on CIFAR by SGD with decoupled weight decay."""
    # ten times that of SGD, as for ImageNet
    return replace(resnet_cifar(), optim=SGDW(lr=0.1, momentum=0.9, weight_decay=5e-3))


@recipe
def wrn_cifar() -> Recipe:
    """WRN-28-10 on CIFAR for 200 epochs; published: CIFAR-10 3.9 % error."""
    return replace(resnet_cifar(), model=Model(name="wrn_28_10"))


@recipe
def mixup_cifar() -> Recipe:
    """ResNet-18 on CIFAR by Mixup; published: CIFAR-10 4.2 % error, of a pre-activation ResNet-18."""
    base = resnet_cifar()
    return replace(
        base,
        mix=Mixup(mixup=1.0, cutmix=0.0, partner="permutation"),
        optim=replace(base.optim, weight_decay=1e-4),
        schedule=Steps(at=(0.5, 0.75), factor=0.1, per="epoch"),
    )


@recipe(choices=CUTOUT)
def cutout_cifar(data: str = "cifar10") -> Recipe:
    """ResNet-18 on CIFAR with Cutout; published: CIFAR-10 4.0 %, CIFAR-100 22.0 % error."""
    base = resnet_cifar()
    return replace(base, data=replace(base.data, name=data), erase=Cutout(length=CUTOUT[data]))


@recipe
def erasing_cifar() -> Recipe:
    """ResNet-18 on CIFAR with random erasing for 300 epochs."""
    base = resnet_cifar()
    return replace(
        base,
        # zeros are the mean colour; the code draws the shape evenly between 0.3 and 1 / 0.3, here its logarithm is
        erase=RandomErasing(prob=0.5, area=(0.02, 0.4), aspect=0.3, mode="const"),
        schedule=Steps(at=(1 / 2, 3 / 4), factor=0.1, per="epoch"),
        train=Settings(epochs=300),
    )


@recipe
def cutmix_imagenet() -> Recipe:
    """ResNet-50 on ImageNet by CutMix for 300 epochs; published: 21.4 % error, without it 23.7 %."""
    base = resnet50()
    # the table has no schedule: that of 90 epochs, stretched
    return replace(base, mix=Mixup(mixup=0.0, cutmix=1.0, prob=1.0, partner="permutation"), train=replace(base.train, epochs=300))
