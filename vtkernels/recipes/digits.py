"""Trainings on scikit-learn's digits, which need no files and no GPU."""

from dataclasses import replace

from vtkernels.recipes._augment import Augment, PaddedCrop, ResizedCrop
from vtkernels.recipes._data import Data
from vtkernels.recipes._optim import SAM, AdamW
from vtkernels.recipes._recipe import Model, Recipe
from vtkernels.recipes._registry import recipe
from vtkernels.recipes._schedule import Cosine
from vtkernels.recipes._task import Classification, CrossEntropy, Drloc
from vtkernels.train import Settings


@recipe
def smoke() -> Recipe:
    """A ViT of 0.1 million parameters on digits, in seconds on one core: does everything work?"""
    return Recipe(
        # so few updates are too few for the usual small initial weights
        model=Model(name="vit_nano_patch4_32", options={"init": "xavier"}),
        data=Data(name="digits", size=32, batch_size=32, normalize="set", eval_crop=1.0, workers=0),
        augment=Augment(crop=PaddedCrop(padding=1), flip=0.0),
        optim=AdamW(lr=2e-3, weight_decay=0.05),
        schedule=Cosine(warmup=1, final_lr=1e-5),
        train=Settings(epochs=5, log_every=5),
    )


@recipe
def demo() -> Recipe:
    """A small Swin with DRLOC and SAM on digits, as `make demo` trains it."""
    base = smoke()
    return replace(
        base,
        model=Model(name="swin_nano_patch4_window4_32", drop_path=0.0, options=base.model.options),
        augment=Augment(crop=ResizedCrop(scale=(0.7, 1.0)), flip=0.0),
        task=Drloc(inner=Classification(loss=CrossEntropy(smoothing=0.1)), weight=0.1, warmup=1, span=16, reference="paper"),
        sam=SAM(rho=0.05),
        schedule=Cosine(warmup=2, final_lr=1e-5),
        optim=AdamW(lr=3e-3, weight_decay=0.05),
        # the average over the last hundred updates or so
        train=replace(base.train, epochs=16, eval_every=2, clip_norm=5.0, ema_decay=0.99, ema_warmup=True),
    )


@recipe
def bert_like() -> Recipe:
    """The encoder of BERT on digits, without text: grey levels of cells are its words, and the first word learns what the image is."""
    base = smoke()
    return replace(
        base,
        model=Model(name="bert_grey_nano_patch4_32"),
        optim=AdamW(lr=1e-3, weight_decay=0.01),
        train=replace(base.train, epochs=10),
    )
