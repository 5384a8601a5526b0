"""Sharpness-aware minimisation on CIFAR (arXiv:2010.01412, arXiv:2102.11600): wide residual nets, and labels that are wrong."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, Cutout, Mixup, PaddedCrop
from vtkernels.recipes._data import Bootstrap, Data
from vtkernels.recipes._optim import SAM, SGD
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine, Steps
from vtkernels.recipes._task import Classification, CrossEntropy
from vtkernels.train import Settings

# share of wrong labels in percent -> radius of SAM
RADII = {"20": 0.1, "40": 0.1, "60": 0.1, "80": 0.05}


@recipe
def sam_cifar_sgd() -> Recipe:
    """WRN-16-8 on CIFAR by plain SGD; published: CIFAR-10 3.20 % error."""
    return Recipe(
        model=Model(name="wrn_16_8"),
        data=Data(name="cifar10", size=32, batch_size=128, normalize="set", eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=4)),
        erase=Cutout(length=16, prob=0.5),
        # 0.1 spread over the nine other classes is 1 / 9 spread over all ten
        task=Classification(loss=CrossEntropy(smoothing=0.1 * 10 / 9)),
        optim=SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=Steps(at=(0.3, 0.6, 0.8), factor=0.2, per="epoch"),
        train=Settings(epochs=200),
    )


@recipe
def sam_cifar() -> Recipe:
    """WRN-16-8 on CIFAR by SAM; published: CIFAR-10 2.86 % error."""
    return replace(sam_cifar_sgd(), sam=SAM(rho=0.05))


@recipe
def asam_cifar() -> Recipe:
    """WRN-16-8 on CIFAR by adaptive SAM; published: CIFAR-10 2.55 % error."""
    # SAM's code with `adaptive`, which adds nothing to the weights' sizes; ASAM's own has a radius of 0.5 and 0.01 added
    return replace(sam_cifar_sgd(), sam=SAM(rho=2.0, adaptive=True))


@recipe(choices=RADII)
def noisy_labels_sgd(percent: str = "20") -> Recipe:
    """ResNet-32 on CIFAR-10 with wrong labels by plain SGD; published from 20 to 80 %: 84.8 68.8 48.2 26.2 %."""
    return Recipe(
        model=Model(name="resnet32"),
        # a drawn label may be the right one
        data=Data(name="cifar10", size=32, batch_size=128, normalize="set", eval_crop=1.0, noise=int(percent) / 100, noise_among="all"),
        augment=Augment(crop=PaddedCrop(padding=4)),
        task=Classification(),
        # the table tells network, epochs and radius; all else is from the authors' code for CIFAR
        optim=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        schedule=Cosine(per="update"),
        train=Settings(epochs=200, clip_norm=5.0),
    )


@recipe(choices=RADII)
def noisy_labels_mixup(percent: str = "20") -> Recipe:
    """ResNet-32 on CIFAR-10 with wrong labels by Mixup; published from 20 to 80 %: 93.0 90.0 83.8 70.2 %."""
    return replace(noisy_labels_sgd(percent), mix=Mixup(mixup=1.0, cutmix=0.0, partner="permutation"))


@recipe(choices=RADII)
def noisy_labels(percent: str = "20") -> Recipe:
    """ResNet-32 on CIFAR-10 with wrong labels by SAM; published from 20 to 80 %: 95.1 93.4 90.5 77.9 %."""
    return replace(noisy_labels_sgd(percent), sam=SAM(rho=RADII[percent]))


def bootstrapped(first: Recipe, run: str) -> Recipe:
    """The same once more, on the labels that the first training's model gives the images."""
    return replace(first, data=replace(first.data, relabel=Bootstrap(run=run)))


@recipe(choices=RADII)
def noisy_labels_bootstrap(percent: str = "20") -> Recipe:
    """The same on what the run of `noisy_labels` made of the labels; published from 20 to 80 %: 95.4 94.2 91.8 79.9 %."""
    return bootstrapped(noisy_labels(percent), f"runs/noisy_labels-{percent}")


@recipe(choices=RADII)
def noisy_labels_mixup_bootstrap(percent: str = "20") -> Recipe:
    """The same on what the run of `noisy_labels_mixup` made of the labels; published from 20 to 80 %: 93.3 92.0 87.6 72.0 %."""
    return bootstrapped(noisy_labels_mixup(percent), f"runs/noisy_labels_mixup-{percent}")
