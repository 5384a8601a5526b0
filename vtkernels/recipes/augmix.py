"""AugMix on CIFAR and ImageNet (arXiv:1912.02781), with the values of its code."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, AugMix, PaddedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SGD, PerSamples
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine, Steps
from vtkernels.recipes._task import Classification, Consistency
from vtkernels.train import Settings


@recipe
def augmix_cifar() -> Recipe:
    """WRN-40-2 on CIFAR by AugMix and its consistency loss; published: CIFAR-10-C 11.2 %, CIFAR-100-C 35.9 % error."""
    return Recipe(
        model=Model(name="wrn_40_2"),
        data=Data(name="cifar10", size=32, batch_size=128, normalize="half", eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=4), policy=AugMix(severity=3.0, width=3, depth=-1, alpha=1.0, views=3)),
        task=Classification(loss=Consistency(weight=12.0)),
        optim=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=Cosine(final_lr=1e-6, per="update"),
        train=Settings(epochs=100),
    )


@recipe
def augmix_cifar_allconv() -> Recipe:
    """All-convolutional net on CIFAR by AugMix; published: CIFAR-10-C 15.0 %, CIFAR-100-C 42.7 % error."""
    return replace(augmix_cifar(), model=Model(name="allconv"))


@recipe
def augmix_cifar_resnext() -> Recipe:
    """ResNeXt-29 (4 x 32) on CIFAR by AugMix; published: CIFAR-10-C 10.9 %, CIFAR-100-C 34.9 % error."""
    return replace(augmix_cifar(), model=Model(name="resnext29_4x32d"), train=Settings(epochs=200))


@recipe
def augmix_cifar_densenet() -> Recipe:
    """DenseNet (40 layers, growth 12) on CIFAR by AugMix; published: CIFAR-10-C 12.7 %, CIFAR-100-C 39.6 % error."""
    base = augmix_cifar()
    # the paper speaks of a DenseNet-BC of 100 layers, the code builds this one
    return replace(base, model=Model(name="densenet_40_12"), optim=replace(base.optim, weight_decay=1e-4), train=Settings(epochs=200))


@recipe
def augmix_imagenet() -> Recipe:
    """ResNet-50 on ImageNet by AugMix and its consistency loss; published after 180 epochs: 77.5 %, 65.3 mCE."""
    return Recipe(
        model=Model(name="resnet50"),
        data=Data(name="imagenet", size=224, batch_size=256, eval_crop=0.875),
        augment=Augment(policy=AugMix(severity=1.0, width=3, depth=-1, alpha=1.0, views=3)),
        task=Classification(loss=Consistency(weight=12.0)),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, scaling=PerSamples(reference=256)),
        # the paper speaks of a warm-up of 5 epochs, the code has none
        schedule=Steps(at=(1 / 3, 2 / 3), factor=0.1, per="epoch"),
        train=Settings(epochs=90),
    )
