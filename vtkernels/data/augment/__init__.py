"""Augmentation of uint8 images, with Pillow's pixels at the speed of native code.

Images are numpy arrays [H, W, 3] or [H, W], or Pillow images; every random choice is a function of the seed given with the image. What begins
with `Batch` takes uint8 tensors [B, C, H, W] on any device that has float64 instead, and a seed for each sample.
"""

from vtkernels.data.augment.augmix import AugMix
from vtkernels.data.augment.auto_augment import AutoAugment, RandomAutoAugment
from vtkernels.data.augment.batch import BatchAugMix, BatchAutoAugment, BatchRandAugment, BatchRandomAutoAugment, apply_batch
from vtkernels.data.augment.image import IMAGENET_MEAN, IMAGENET_STD, apply, crop, normalize, pad, resize
from vtkernels.data.augment.rand_augment import RandAugment
from vtkernels.data.augment.random import Stream, sample_seed

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AugMix",
    "AutoAugment",
    "BatchAugMix",
    "BatchAutoAugment",
    "BatchRandAugment",
    "BatchRandomAutoAugment",
    "RandAugment",
    "RandomAutoAugment",
    "Stream",
    "apply",
    "apply_batch",
    "crop",
    "normalize",
    "pad",
    "resize",
    "sample_seed",
]
