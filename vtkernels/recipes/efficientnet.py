"""EfficientNets on ImageNet (arXiv:1905.11946): depth, width and size of the images grow together."""

from vtkernels.recipes._augment import Augment, AutoAugment
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import PerSamples, RMSprop
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Decay
from vtkernels.recipes._task import Classification, CrossEntropy
from vtkernels.train import Settings

# edge of the images, and dropout before the classifier
SIZES = {
    "b0": (224, 0.2),
    "b1": (240, 0.2),
    "b2": (260, 0.3),
    "b3": (300, 0.3),
    "b4": (380, 0.4),
    "b5": (456, 0.4),
    "b6": (528, 0.5),
    "b7": (600, 0.5),
}


@recipe(choices=SIZES)
def efficientnet(size: str = "b0") -> Recipe:
    """EfficientNet on ImageNet, B0 to B7."""
    pixels, dropout = SIZES[size]
    return Recipe(
        # depth that survives with 0.8 at the end
        model=Model(name=f"efficientnet_{size}", drop_path=0.2, options={"dropout": dropout}),
        data=Data(name="imagenet", size=pixels, batch_size=4096, eval_crop=0.875),
        augment=Augment(policy=AutoAugment(policy="imagenet")),
        # smoothing, warm-up and epochs are not told: those of `noisy_student`, by the same authors
        task=Classification(loss=CrossEntropy(smoothing=0.1)),
        optim=RMSprop(lr=0.256, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5, scaling=PerSamples(reference=4096)),
        schedule=Decay(warmup=5, every=2.4, factor=0.97),
        train=Settings(epochs=350, ema_decay=0.9999),
    )
