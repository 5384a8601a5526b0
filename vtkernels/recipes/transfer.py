"""From ImageNet to other sets: a new classifier on a trunk that learns a hundred times more slowly, with the values of T2T-ViT's code."""

from vtkernels.recipes._augment import Augment, PaddedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SGD
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.train import Settings

SETS = ("cifar10", "cifar100", "inat2019", "cars", "flowers102", "pets")


def transferred(name: str, run: str, data: str) -> Recipe:
    """From the run of the first training; --model.checkpoint takes the authors' file, too."""
    return Recipe(
        model=Model(name=name, checkpoint=run),
        data=Data(name=data, size=224, batch_size=64, eval_crop=1.0),
        augment=Augment(crop=PaddedCrop(padding=28, resize=True)),
        optim=SGD(lr=0.05, momentum=0.9, weight_decay=5e-4, layers="trunk", layer_decay=0.01),
        schedule=Cosine(final_lr=2e-4, per="epoch"),
        train=Settings(epochs=60),
    )


@recipe(choices=SETS)
def t2t_transfer(data: str = "cifar10") -> Recipe:
    """The T2T-ViT-14 of `t2t` on a smaller set; published: CIFAR-10 98.3 %, CIFAR-100 88.4 %."""
    return transferred("t2t_vit_14", "runs/t2t", data)


@recipe(choices=SETS)
def t2t_19_transfer(data: str = "cifar10") -> Recipe:
    """The T2T-ViT-19 of `t2t_19` on a smaller set; published: CIFAR-10 98.4 %, CIFAR-100 89.0 %."""
    return transferred("t2t_vit_19", "runs/t2t_19", data)


# no source tells ViTAE's values: those of T2T-ViT, out of whose code its own grew


@recipe(choices=SETS)
def vitae_transfer(data: str = "cifar10") -> Recipe:
    """The ViTAE-T of `vitae` on a smaller set; published in this order: 97.3 86.0 73.3 89.5 97.5 92.6 %."""
    return transferred("vitae_tiny", "runs/vitae", data)


@recipe(choices=SETS)
def vitae_small_transfer(data: str = "cifar10") -> Recipe:
    """The ViTAE-S of `vitae_small` on a smaller set; published in this order: 98.8 90.8 76.0 91.4 97.8 94.2 %."""
    return transferred("vitae_small", "runs/vitae_small", data)
