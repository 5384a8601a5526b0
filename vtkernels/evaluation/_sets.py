"""The sets of images of one evaluation, by name, each built when its turn comes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.corruptions import SMALL, Corrupted
from vtkernels.data.datasets import ImageDataset, Statistics, Subset, create_dataset
from vtkernels.data.loader import Loader, create_loader
from vtkernels.data.transforms import CenterCrop, Compose, Normalize, Resize
from vtkernels.evaluation._options import EvaluationOptions
from vtkernels.evaluation.corruption import ALEXNET_ERRORS

CLEAN = "clean"
ATTACKS = ("fgsm", "pgd")
_NORMALIZE = {
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": Statistics((0.5,) * 3, (0.5,) * 3),
    "none": Statistics((0.0,) * 3, (1.0,) * 3),
}


class ImageSet(NamedTuple):
    """One set: its name, how it is built, and of which of the model's classes it is."""

    name: str
    build: Callable[[], ImageDataset]
    # images that are cut to the model's size already
    cut: bool = False
    imagenet_classes: bool = False


def open_set_of(options: EvaluationOptions, name: str, path: Path | None, split: str | None, **more: Any) -> ImageDataset:
    """A data set, of which `split` may be left to it."""
    if split is not None:
        return _limited(create_dataset(name, split, root=path, **more), options.limit)
    refusals = []
    for likely in ("test", "val"):
        try:
            return _limited(create_dataset(name, likely, root=path, **more), options.limit)
        except (ValueError, FileNotFoundError) as error:
            refusals.append(error)
    raise refusals[0]


def clean_set(options: EvaluationOptions) -> ImageDataset:
    return open_set_of(options, options.data, options.path, options.split, **options.data_options)


def sets_of(options: EvaluationOptions, clean: ImageDataset) -> list[ImageSet]:
    """All sets of an evaluation, the clean one first."""
    found = [ImageSet(CLEAN, lambda: clean)]
    for field, name in (("real", "imagenet-real"), ("v2", "imagenet-v2"), ("renditions", "imagenet-r"), ("natural", "imagenet-a")):
        place = getattr(options, field)
        if place is not None:
            found.append(ImageSet(name, lambda name=name, place=place: open_set_of(options, name, place, None), imagenet_classes=True))
    if options.attack != "none":
        found.append(ImageSet(options.attack, lambda: clean))
    if options.corruptions != "none":
        corrupted = _published if options.corruptions == "files" else _generated
        for name in options.corruption_names or tuple(ALEXNET_ERRORS):
            found += [corrupted(options, clean, name, severity) for severity in sorted(set(options.severities))]
    return found


def corruption_of(set_name: str) -> tuple[str, int] | None:
    """Of "fog/3", ("fog", 3)."""
    name, _, severity = set_name.partition("/")
    return (name, int(severity)) if name in ALEXNET_ERRORS and severity else None


def loader_of(options: EvaluationOptions, dataset: ImageDataset, size: int, *, cut: bool = False, pixels: bool = False, device: Any = None) -> Loader:
    """Batches as the model sees them; with `pixels` not normalised, in [0, 1]."""
    statistics = _NORMALIZE["none"] if pixels else statistics_of(options, dataset)
    channels = dataset[0][0].shape[-1]
    mean, std = (values[:channels] for values in statistics)
    transform = Compose(*_cutting(options, size, 1.0 if cut else _crop(options, dataset)), Normalize(mean, std))
    return create_loader(dataset, options.batch_size, transform=transform, workers=options.workers, seed=options.seed, device=device)


def statistics_of(options: EvaluationOptions, dataset: ImageDataset) -> Statistics:
    return dataset.statistics if options.normalize in (None, "set") else _NORMALIZE[options.normalize]


def _crop(options: EvaluationOptions, dataset: ImageDataset) -> float:
    if options.crop is not None:
        return options.crop
    return 1.0 if _is_small(dataset) else 0.875


def _is_small(dataset: ImageDataset) -> bool:
    return max(dataset[0][0].shape[:2]) <= SMALL


def _cutting(options: EvaluationOptions, size: int, crop: float) -> list:
    return [Resize((int(size / crop),) * 2, "bicubic", cover=not options.squash), CenterCrop(size)]


def _limited(dataset: ImageDataset, limit: int | None) -> ImageDataset:
    if not len(dataset):
        fail("vtkernels eval", "the data set", "hold at least one image", 0)
    if limit is None or limit >= len(dataset):
        return dataset
    part = Subset(dataset, np.arange(limit) * len(dataset) // limit)
    if hasattr(dataset, "imagenet_ids"):
        part.imagenet_ids = dataset.imagenet_ids
    return part


def _generated(options: EvaluationOptions, clean: ImageDataset, name: str, severity: int) -> ImageSet:
    if _is_small(clean):
        return ImageSet(f"{name}/{severity}", lambda: Corrupted(clean, name, severity, seed=options.seed))
    # ImageNet-C's order: large images are cut before they are corrupted
    return ImageSet(f"{name}/{severity}", lambda: Corrupted(_Cut(clean, options), name, severity, seed=options.seed), cut=True)


class _Cut(ImageDataset):
    """Images cut to the model's size."""

    def __init__(self, dataset: ImageDataset, options: EvaluationOptions):
        super().__init__(dataset.classes, dataset.targets, dataset.statistics)
        self.dataset, self.transform = dataset, Compose(*_cutting(options, options.size or 224, _crop(options, dataset)))

    def image(self, index: int) -> np.ndarray:
        return self.transform(self.dataset.image(index), seed=0)

    def target(self, index: int) -> Any:
        return self.dataset.target(index)


def _published(options: EvaluationOptions, clean: ImageDataset, name: str, severity: int) -> ImageSet:
    if options.data in ("cifar10", "cifar100"):
        files, split, cut = f"{options.data}-c", "test", False
    elif len(clean.classes) == 1000:
        files, split, cut = "imagenet-c", "test", True
    else:
        fail("vtkernels eval", "corruptions", "be 'generated' for this set: files exist for ImageNet and CIFAR", options.corruptions)
    return ImageSet(
        f"{name}/{severity}",
        lambda: _limited(create_dataset(files, split, root=options.corruption_path, corruption=name, severity=severity), options.limit),
        cut=cut,
    )
