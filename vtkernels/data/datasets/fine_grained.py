"""Flowers, pets, cars and iNaturalist: image files beside one file of labels."""

from pathlib import Path

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import FileDataset, checked_split, found, read_json, read_mat, root_of, same_length
from vtkernels.data.datasets._registry import register

FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets"
CARS = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
INATURALIST = "https://github.com/visipedia/inat_comp/tree/master/2019"


@register("flowers102")
def flowers102(name: str, split: str, *, root: str | Path | None) -> FileDataset:
    """Oxford Flowers: jpg/image_00001.jpg ..., imagelabels.mat, setid.mat. Papers train on "trainval"."""
    keys = {"train": ["trnid"], "val": ["valid"], "trainval": ["trnid", "valid"], "test": ["tstid"]}
    checked_split(name, split, tuple(keys))
    base, layout = root_of(name, root, FLOWERS), "jpg/, imagelabels.mat and setid.mat"
    images = found(name, base, layout, FLOWERS, "jpg")
    labels = read_mat(found(name, base, layout, FLOWERS, "imagelabels.mat"))["labels"].reshape(-1)
    ids = read_mat(found(name, base, layout, FLOWERS, "setid.mat"))
    numbers = np.concatenate([ids[key].reshape(-1) for key in keys[split]]).astype(np.int64)
    if numbers.size and not 1 <= numbers.min() <= numbers.max() <= len(labels):
        fail(name, "setid.mat", f"name images 1 to {len(labels)}", f"{numbers.min()} to {numbers.max()}", "the two .mat files do not belong together")
    paths = [images / f"image_{number:05d}.jpg" for number in numbers]
    return FileDataset(paths, labels[numbers - 1].astype(np.int64) - 1, [str(number) for number in range(1, 103)])


@register("pets")
def pets(name: str, split: str, *, root: str | Path | None) -> FileDataset:
    """Oxford-IIIT Pets: images/<Breed>_<n>.jpg, annotations/trainval.txt and test.txt."""
    checked_split(name, split, ("trainval", "train", "test"))
    base, layout = root_of(name, root, PETS), "images/ and annotations/trainval.txt, annotations/test.txt"
    images = found(name, base, layout, PETS, "images")
    listing = found(name, base, layout, PETS, f"annotations/{'test' if split == 'test' else 'trainval'}.txt")
    paths, targets, classes = [], [], {}
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not words[1].isdecimal():
            fail(name, f"{listing}:{number}", "read '<image> <class> <species> <breed>'", repr(line))
        paths.append(images / f"{words[0]}.jpg")
        targets.append(int(words[1]) - 1)
        classes[targets[-1]] = words[0].rpartition("_")[0]
    return FileDataset(paths, targets, [classes.get(index, str(index)) for index in range(max(classes, default=-1) + 1)])


@register("cars")
def cars(name: str, split: str, *, root: str | Path | None) -> FileDataset:
    """Stanford Cars: cars_train/, cars_test/, devkit/cars_meta.mat, devkit/cars_train_annos.mat; labels of the test images
    in cars_test_annos_withlabels.mat, in the devkit or beside it."""
    checked_split(name, split, ("train", "test"))
    base, layout = root_of(name, root, CARS), "cars_train/, cars_test/, devkit/*.mat and cars_test_annos_withlabels.mat"
    images = found(name, base, layout, CARS, f"cars_{split}")
    file = "cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    annotations = read_mat(found(name, base, layout, CARS, f"devkit/{file}", file))["annotations"].reshape(-1)
    classes = [str(_inner(entry)) for entry in read_mat(found(name, base, layout, CARS, "devkit/cars_meta.mat"))["class_names"].reshape(-1)]
    if "class" not in (annotations.dtype.names or ()):
        fail(name, file, "hold a class for each image", annotations.dtype.names, "the devkit's own test list has none; take the one with labels")
    paths = [images / str(_inner(entry["fname"])) for entry in annotations]
    return FileDataset(paths, [int(_inner(entry["class"])) - 1 for entry in annotations], classes)


def _inner(value):
    """The single value inside MATLAB's nested arrays."""
    while isinstance(value, np.ndarray) and value.size:
        value = value.reshape(-1)[0]
    return value


@register("inat2019")
def inat2019(name: str, split: str, *, root: str | Path | None) -> FileDataset:
    """iNaturalist 2019: train_val2019/..., train2019.json, val2019.json, and categories.json for names."""
    checked_split(name, split, ("train", "val"))
    base, layout = root_of(name, root, INATURALIST), "train_val2019/, train2019.json and val2019.json"
    listing = found(name, base, layout, INATURALIST, f"{split}2019.json")
    content = read_json(listing)
    if not {"images", "annotations"} <= set(content):
        fail(name, listing.name, "hold 'images' and 'annotations'", sorted(content))
    label = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
    files = {entry["id"]: entry["file_name"] for entry in content["images"]}
    if label.keys() != files.keys():
        odd = len(label.keys() ^ files.keys())
        fail(name, listing.name, "label each image once", f"{odd} images or labels without the other")
    categories = content.get("categories", [])
    if (base / "categories.json").exists():
        categories = read_json(base / "categories.json")
    names = {entry["id"]: entry["name"] for entry in categories}
    count = max([*names, *label.values()], default=-1) + 1
    identifiers = sorted(files)
    same_length(name, identifiers, label)
    return FileDataset([base / files[i] for i in identifiers], [label[i] for i in identifiers], [names.get(index, str(index)) for index in range(count)])
