"""Sharpness-aware minimisation as published (arXiv:2010.01412), with the values of its code, and ASAM's of its own (arXiv:2102.11600)."""

from dataclasses import replace

from vtkernels.recipes._augment import AutoAugment, Cutout
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import ASAM, SAM, SGD, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes._task import Classification, CrossEntropy
from vtkernels.recipes.resnet import resnet50, resnet_cifar
from vtkernels.recipes.sam_cifar import sam_cifar_sgd
from vtkernels.train import Settings

AUGMENTATIONS = ("basic", "cutout", "autoaugment")
EPOCHS = ("100", "200", "400")
# set -> radius
ASAM_RADII = {"cifar10": 0.5, "cifar100": 1.0}
TUNED_ON = ("cifar10", "cifar100", "cars", "flowers102", "pets")


@recipe(choices=AUGMENTATIONS)
def sgd_paper_cifar(augmentation: str = "basic") -> Recipe:
    """WRN-28-10 on CIFAR by plain SGD; published in this order: CIFAR-10 3.5 2.6 2.3 % error, CIFAR-100 18.8 16.9 15.8 %."""
    base = resnet_cifar()
    base = replace(
        base,
        model=Model(name="wrn_28_10"),
        # the decay is part of the loss
        optim=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        schedule=Cosine(per="update"),
        # the code's text speaks of 1800 epochs
        train=Settings(epochs=200, clip_norm=5.0),
    )
    changes = {
        "basic": {},
        "cutout": {"erase": Cutout(length=16)},
        "autoaugment": {"augment": replace(base.augment, policy=AutoAugment(policy="cifar"))},
    }
    return replace(base, **changes[augmentation])


@recipe(choices=AUGMENTATIONS)
def sam_paper_cifar(augmentation: str = "basic") -> Recipe:
    """WRN-28-10 on CIFAR by SAM; published in this order: CIFAR-10 2.7 2.3 2.1 % error, CIFAR-100 16.5 14.9 13.6 %."""
    return replace(sgd_paper_cifar(augmentation), sam=SAM(rho=0.05))


@recipe(choices=ASAM_RADII)
def asam_paper_cifar(data: str = "cifar10") -> Recipe:
    """A wide residual net on CIFAR by ASAM, with the values of its own code."""
    base = sam_cifar_sgd()
    return replace(
        base,
        # which one is not told: that of `sam_cifar`
        data=replace(base.data, name=data),
        erase=None,
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        schedule=Cosine(per="update"),
        sam=ASAM(rho=ASAM_RADII[data]),
    )


def on_imagenet(name: str, epochs: str) -> Recipe:
    base = resnet50()
    return replace(
        base,
        model=Model(name=name),
        data=replace(base.data, batch_size=4096),
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        optim=SGD(lr=1.0, momentum=0.9, weight_decay=1e-4, scaling=PerSamples(reference=4096)),
        # the table has no schedule: that of the code for CIFAR
        schedule=Cosine(per="update"),
        sam=SAM(rho=0.05),
        train=Settings(epochs=int(epochs)),
    )


@recipe(choices=EPOCHS)
def sam_paper_resnet50(epochs: str = "100") -> Recipe:
    """ResNet-50 on ImageNet by SAM; published in this order: 22.5 21.4 20.9 % error, by SGD 22.9 22.3 22.3 %."""
    return on_imagenet("resnet50", epochs)


@recipe(choices=EPOCHS)
def sam_paper_resnet101(epochs: str = "100") -> Recipe:
    """ResNet-101 on ImageNet by SAM; published in this order: 20.2 19.4 19.0 % error, by SGD 21.2 20.9 22.3 %."""
    return on_imagenet("resnet101", epochs)


@recipe(choices=EPOCHS)
def sam_paper_resnet152(epochs: str = "100") -> Recipe:
    """ResNet-152 on ImageNet by SAM; published in this order: 19.2 18.5 18.4 % error, by SGD 20.4 20.3 20.9 %."""
    return on_imagenet("resnet152", epochs)


@recipe(choices=TUNED_ON)
def sam_paper_finetune(data: str = "cifar10") -> Recipe:
    """The EfficientNet-B7 of `efficientnet-b7` on a smaller set by SAM for 10 epochs."""
    return Recipe(
        model=Model(name="efficientnet_b7", checkpoint="runs/efficientnet-b7"),
        data=Data(name=data, size=600, batch_size=512, eval_crop=0.875),
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        # its decay is not told: that of EfficientNet's training; all else is as for CIFAR
        optim=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-5),
        schedule=Cosine(per="update"),
        sam=SAM(rho=0.1),
        train=Settings(epochs=10, clip_norm=1.0),
    )
