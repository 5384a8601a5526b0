"""The data sets of the sources, read from the files as they were published. One set a file; a file placed here is found by itself."""

from vtkernels.data.datasets._base import CorruptImage, ImageDataset, Statistics
from vtkernels.data.datasets._registry import create_dataset, list_datasets
from vtkernels.data.datasets.subsets import (
    LabelPool,
    NoisyLabels,
    Subset,
    class_balanced_subset,
    class_subset,
    fraction_subset,
    noisy_labels,
    relabelled,
    stratified_split,
    unlabelled,
)

__all__ = [
    "CorruptImage",
    "ImageDataset",
    "LabelPool",
    "NoisyLabels",
    "Statistics",
    "Subset",
    "class_balanced_subset",
    "class_subset",
    "create_dataset",
    "fraction_subset",
    "list_datasets",
    "noisy_labels",
    "stratified_split",
    "relabelled",
    "unlabelled",
]
