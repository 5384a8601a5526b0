"""Which images a recipe trains on, and how batches are made of them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from vtkernels.recipes._errors import RecipeError, check_between, refuse

if TYPE_CHECKING:
    from vtkernels.data.datasets import ImageDataset, Statistics

Scalar = bool | int | float | str


class KnownSet(NamedTuple):
    """What is published of a data set: its splits for training and testing, their sizes, and the number of classes."""

    train: str
    valid: str
    train_images: int
    valid_images: int
    classes: int


# DomainNet's sizes depend on the domain and are told apart below
KNOWN = {
    "imagenet": KnownSet("train", "val", 1_281_167, 50_000, 1000),
    "imagenet-100": KnownSet("train", "val", 126_689, 5_000, 100),
    # of its 14,197,122 images every 256th is held back
    "imagenet-21k": KnownSet("train", "val", 14_141_664, 55_458, 21_841),
    "tiny-imagenet": KnownSet("train", "val", 100_000, 10_000, 200),
    "cifar10": KnownSet("train", "test", 50_000, 10_000, 10),
    "cifar100": KnownSet("train", "test", 50_000, 10_000, 100),
    # papers train on the union of the two smaller splits
    "flowers102": KnownSet("trainval", "test", 2_040, 6_149, 102),
    "svhn": KnownSet("train", "test", 73_257, 26_032, 10),
    "digits": KnownSet("train", "test", 1_442, 355, 10),
    "shapes": KnownSet("train", "test", 1_000, 1_000, 8),
    "pets": KnownSet("trainval", "test", 3_680, 3_669, 37),
    "cars": KnownSet("train", "test", 8_144, 8_041, 196),
    # of its 118 thousand training images, those with an object
    "coco": KnownSet("train", "val", 117_266, 5_000, 80),
    "ade20k": KnownSet("train", "val", 20_210, 2_000, 150),
    "inat2019": KnownSet("train", "val", 265_213, 3_030, 1010),
}
DOMAINS = {
    "clipart": (33_525, 14_604),
    "infograph": (36_023, 15_582),
    "painting": (50_416, 21_850),
    "quickdraw": (120_750, 51_750),
    "real": (120_906, 52_041),
    "sketch": (48_212, 20_916),
}
# sets that need no files
DRAWN = ("digits", "shapes")


def statistics_named(name: Literal["imagenet", "half", "none"]) -> "Statistics":
    """Those that no set has of its own."""
    from vtkernels.data.datasets import Statistics
    from vtkernels.data.datasets._base import IMAGENET_STATISTICS

    return {"imagenet": IMAGENET_STATISTICS, "half": Statistics((0.5,) * 3, (0.5,) * 3), "none": Statistics((0.0,) * 3, (1.0,) * 3)}[name]


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Labels of the training images are what an earlier model says of them: a second training is not told of the first one's noise.

    Attributes:
        run: folder of the run that trained it, or its weights.
    """

    run: str | None = None

    def build(self, train: "ImageDataset", data: "Data") -> "ImageDataset":
        from vtkernels.data.datasets import relabelled
        from vtkernels.evaluation.predictions import predict
        from vtkernels.models import create_model
        from vtkernels.recipes._build import validation_loader
        from vtkernels.recipes._recipe import Recipe
        from vtkernels.recipes._teacher import renormalized
        from vtkernels.train import distributed

        if self.run is None:
            refuse("data.relabel.run", "be the run whose model tells the labels", None, "train without --data.relabel first")
        try:
            model = create_model(checkpoint=self.run)
        except (OSError, ValueError, TypeError) as error:
            refuse("data.relabel.run", "be the run whose model tells the labels", repr(self.run), str(error))
        if model.num_classes != len(train.classes):
            refuse("data.relabel.run", f"know the {len(train.classes)} classes of {data.name}", f"{self.run!r} of {model.num_classes}")
        given = data.statistics(train)
        model, device = renormalized(model, given, model.statistics or given), distributed.this_device()
        # images as evaluation sees them, none left out
        loader = validation_loader(Recipe(data=replace(data, on_corrupt="raise")), train, data.valid_batch_size or data.batch_size, device)
        return relabelled(train, predict(model, loader, device=device).logits.argmax(1).cpu().numpy())


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images.

    Attributes:
        name: one of `vtkernels list datasets`; "folder" reads PATH/SPLIT/CLASS/IMAGE.
        path: folder with the set's files; digits and shapes need none.
        options: of the single set, such as domain of domainnet.
        train_split, valid_split: None means the usual ones of the set.
        size: edge of the images that the model sees.
        batch_size: images of one optimizer step, over all processes and accumulated passes together.
        valid_batch_size: images of a pass in evaluation, in each process; None means as many as one pass of training.
        fraction: share of the training images that is used.
        fraction_seed: which images these are.
        noise: probability with which the label of a training image is replaced by a random one.
        noise_among: whether the right class is "all" others' equal in that draw, or left out of it ("others").
        relabel: whether labels of training images are replaced by what a model says; none keeps them.
        normalize: by the "set"'s own mean and deviation, by those of "imagenet", to -1..1 ("half"), or not at all ("none").
        eval_crop: share of the resized image that evaluation sees, on each axis.
        squash: evaluation gives up the image's shape rather than cutting it.
        workers: processes that read and augment, beside each training process.
        on_corrupt: "raise", or "skip" unreadable images.
    """

    name: str = "imagenet"
    path: Path | None = None
    options: dict[str, Scalar] = field(default_factory=dict)
    train_split: str | None = None
    valid_split: str | None = None
    size: int = 224
    batch_size: int = 1024
    valid_batch_size: int | None = None
    fraction: float = 1.0
    fraction_seed: int = 0
    noise: float = 0.0
    noise_among: Literal["all", "others"] = "all"
    relabel: Bootstrap | None = None
    normalize: Literal["set", "imagenet", "half", "none"] = "imagenet"
    eval_crop: float = 0.875
    squash: bool = False
    workers: int = 8
    on_corrupt: Literal["raise", "skip"] = "raise"

    TINY_SIZE: ClassVar[int] = 32

    def check(self) -> None:
        check_between("data.fraction", self.fraction, 0, 1, open_below=True)
        check_between("data.fraction_seed", self.fraction_seed, 0)
        check_between("data.noise", self.noise, 0, 1)
        check_between("data.eval_crop", self.eval_crop, 0, 1, open_below=True)
        check_between("data.batch_size", self.batch_size, 1)
        if self.valid_batch_size is not None:
            check_between("data.valid_batch_size", self.valid_batch_size, 1)
        check_between("data.size", self.size, 1)
        check_between("data.workers", self.workers, 0)

    def published(self) -> KnownSet | None:
        """Sizes as published, for plans made without the files."""
        if self.name == "domainnet" and self.options.get("domain") in DOMAINS:
            return KnownSet("train", "test", *DOMAINS[self.options["domain"]], 345)
        known = KNOWN.get(self.name)
        count = self.options.get("count") if self.name == "shapes" else None
        return known._replace(train_images=count, valid_images=count) if known and count else known

    def datasets(self) -> tuple["ImageDataset", "ImageDataset"]:
        """For training and for evaluation."""
        from vtkernels.data.datasets import fraction_subset, noisy_labels

        train = self.whole("train")
        if self.fraction < 1:
            train = fraction_subset(train, self.fraction, seed=self.fraction_seed)
        if self.noise > 0:
            train = noisy_labels(train, self.noise, among=self.noise_among)
        if self.relabel is not None:
            train = self.relabel.build(train, self)
        if not len(train):
            refuse("data.fraction", "leave at least one image", self.fraction)
        return train, self.whole("valid")

    def left_out(self) -> "ImageDataset":
        """The training images that `fraction` does not use."""
        from vtkernels.data.datasets import Subset, fraction_subset

        whole = self.whole("train")
        used = fraction_subset(whole, self.fraction, seed=self.fraction_seed).indices
        return Subset(whole, sorted(set(range(len(whole))) - set(used.tolist())))

    def whole(self, part: Literal["train", "valid"]) -> "ImageDataset":
        from vtkernels.data.datasets import create_dataset, list_datasets
        from vtkernels.recipes._errors import nearest

        names = list_datasets()
        if self.name not in names:
            refuse("data.name", "be one of `vtkernels list datasets`", repr(self.name), nearest(self.name, names))
        if self.name not in DRAWN and (self.path is None or not self.path.is_dir()):
            got = "None" if self.path is None else f"{str(self.path)!r}, which is no folder"
            refuse(
                "data.path", f"be the folder with the files of {self.name}", got, "nothing is downloaded; --data.path FOLDER, or --scale tiny to try the recipe"
            )
        known = self.published()
        split = getattr(self, f"{part}_split") or (getattr(known, part) if known else {"train": "train", "valid": "val"}[part])
        options: dict[str, Any] = dict(self.options)
        if self.name in DRAWN:
            options.setdefault("size", self.size)
        try:
            return create_dataset(self.name, split, root=self.path, **options)
        except TypeError as error:
            refuse("data.options", "be options of the set", options, str(error))
        except FileNotFoundError as error:
            refuse("data.path", f"hold the files of {self.name}", str(self.path), str(error))
        except ValueError as error:
            raise RecipeError(f"recipe: data: {error}") from error

    def statistics(self, dataset: "ImageDataset") -> "Statistics | None":
        return dataset.statistics if self.normalize == "set" else statistics_named(self.normalize)

    def tiny(self, name: str) -> "Data":
        return replace(
            self,
            name=name,
            path=None,
            options={},
            train_split=None,
            valid_split=None,
            size=self.TINY_SIZE,
            batch_size=64,
            valid_batch_size=128,
            fraction=1.0,
            # there is no earlier run
            relabel=None,
            eval_crop=1.0,
            normalize="none" if self.normalize == "none" else "set",
            workers=0,
        )
