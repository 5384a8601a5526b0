"""Augmentation of uint8 images, with Pillow's pixels at the speed of native code.

Images are numpy arrays [H, W, 3] or [H, W], or Pillow images; every random choice is a function of the seed given with the image.
"""

from vtkernels.data.augment.augmix import AugMix
from vtkernels.data.augment.auto_augment import AutoAugment, RandomAutoAugment
from vtkernels.data.augment.image import IMAGENET_MEAN, IMAGENET_STD, apply, crop, normalize, pad, resize
from vtkernels.data.augment.rand_augment import RandAugment
from vtkernels.data.augment.random import Stream, sample_seed

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AugMix",
    "AutoAugment",
    "RandAugment",
    "RandomAutoAugment",
    "Stream",
    "apply",
    "crop",
    "normalize",
    "pad",
    "resize",
    "sample_seed",
]
