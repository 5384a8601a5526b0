"""Images with many objects: boxes of COCO and VOC, maps of classes of VOC and ADE20K."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import CorruptImage, FileDataset, checked_split, found, needs, read_json, root_of
from vtkernels.data.datasets._registry import register

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_VOC_LABELS = {kind: label for label, kind in enumerate(VOC_CLASSES)}

Objects = dict[str, np.ndarray]


class SceneDataset(FileDataset):
    """Images in files, with a target each that is read when it is asked for. The `targets` say nothing of an image's class, for there is none."""

    def __init__(self, paths: Sequence[Path], classes: Sequence[str], sources: Sequence[Any], read: Callable[[Any], Any]):
        super().__init__(paths, np.zeros(len(paths), dtype=np.int64), classes)
        self.sources, self.read = sources, read

    def target(self, index: int) -> Any:
        return self.read(self.sources[index])


@register("coco")
def coco(name: str, split: str, *, root: str | Path | None, year: int = 2017, crowds: bool = True) -> SceneDataset:
    """Boxes of <root>/annotations/instances_<split><year>.json; images in <root>/<split><year>/.

    Targets are {"boxes" float32 [n, 4] as x0 y0 x1 y1, "labels" int64 [n], "crowd" bool [n]}. Classes count in the order of their published numbers,
    which have gaps. Boxes are cut at the image's borders, and those of which nothing is left are left out, as are, of the training split, images
    without any object.

    Args:
        crowds: keep boxes around groups of objects, marked as such.
    """
    source = "https://cocodataset.org/#download"
    base = root_of(name, root, source)
    listing = f"annotations/instances_{split}{year}.json"
    content = read_json(found(name, base, f"{listing} and images in {split}{year}/", source, listing))
    place = found(name, base, f"images in {split}{year}/", source, f"{split}{year}", split)
    try:
        return _coco(name, split, listing, content, place, crowds)
    except (KeyError, TypeError) as error:
        hint = "test images are published without objects; fetch it anew, or export boxes along with masks"
        fail(name, listing, "have images, categories, and annotations with a bbox, as published", f"{type(error).__name__} {error}", hint)


def _coco(name: str, split: str, listing: str, content: dict[str, Any], place: Path, crowds: bool) -> SceneDataset:
    kinds = sorted(content["categories"], key=lambda kind: kind["id"])
    labels = {kind["id"]: label for label, kind in enumerate(kinds)}
    images = {image["id"]: image for image in sorted(content["images"], key=lambda image: image["id"])}
    rows: dict[int, list[tuple[list[float], int, bool]]] = {number: [] for number in images}
    for entry in content["annotations"]:
        if entry["image_id"] not in rows or entry["category_id"] not in labels:
            fail(name, listing, "name images and categories that it lists", f"annotation {entry.get('id')} of others", "fetch it anew")
        image, (x, y, width, height) = images[entry["image_id"]], entry["bbox"]
        box = [max(x, 0.0), max(y, 0.0), min(x + width, image["width"]), min(y + height, image["height"])]
        is_crowd = bool(entry.get("iscrowd", 0))
        if box[2] > box[0] and box[3] > box[1] and (crowds or not is_crowd):
            rows[entry["image_id"]].append((box, labels[entry["category_id"]], is_crowd))
    kept = [number for number, own in rows.items() if split != "train" or any(not is_crowd for *_, is_crowd in own)]
    objects = [_objects(rows[number], "crowd") for number in kept]
    paths = [place / images[number]["file_name"] for number in kept]
    _all_there(name, paths)
    return SceneDataset(paths, [kind["name"] for kind in kinds], objects, dict)


@register("voc")
def voc(name: str, split: str, *, root: str | Path | None, task: str = "detection", year: int = 2012) -> SceneDataset:
    """VOCdevkit/VOC<year>, or that folder itself.

    Targets of task "detection" are {"boxes" float32 [n, 4] as x0 y0 x1 y1, "labels" int64 [n] of 20 classes, "difficult" bool [n]}; of "segmentation"
    uint8 [H, W] of 21 classes, the background being the first, and 255 for pixels that do not count.
    """
    source = "http://host.robots.ox.ac.uk/pascal/VOC"
    if task not in ("detection", "segmentation"):
        fail(name, "task", "be detection or segmentation", repr(task))
    base = root_of(name, root, source)
    base = next((place for place in (base / "VOCdevkit" / f"VOC{year}", base / f"VOC{year}") if place.is_dir()), base)
    lists = f"ImageSets/{'Main' if task == 'detection' else 'Segmentation'}"
    names = [line.split()[0] for line in found(name, base, f"{lists}/{split}.txt", source, f"{lists}/{split}.txt").read_text().splitlines() if line.strip()]
    paths = [base / "JPEGImages" / f"{own}.jpg" for own in names]
    folder, ending = ("Annotations", "xml") if task == "detection" else ("SegmentationClass", "png")
    told = [base / folder / f"{own}.{ending}" for own in names]
    _all_there(name, paths + told)
    if task == "detection":
        return SceneDataset(paths, VOC_CLASSES, told, _voc_objects)
    return SceneDataset(paths, ["background", *VOC_CLASSES], told, read_map)


def _voc_objects(path: Path) -> Objects:
    try:
        entries = ElementTree.parse(path).getroot().iter("object")
        rows = []
        for entry in entries:
            x0, y0, x1, y1 = (float(entry.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
            # published corners count from 1, and are both inside
            rows.append(([x0 - 1, y0 - 1, x1, y1], _VOC_LABELS[entry.findtext("name")], entry.findtext("difficult") == "1"))
    except (ElementTree.ParseError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected an annotation of VOC with objects of its 20 classes, got {error}; fetch it anew") from error
    return _objects(rows, "difficult")


def _all_there(name: str, paths: Sequence[Path]) -> None:
    """A file that is missing would end a training in the middle. Folders are listed, which is faster than to ask for each file."""
    there = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in there[path.parent]]
    if missing:
        fail(name, "all files", "be there that its lists name", f"none for {len(missing)} of {len(paths)}", f"the first is {missing[0]}", FileNotFoundError)


def _objects(rows: list[tuple[list[float], int, bool]], mark: str) -> Objects:
    boxes, labels, marks = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "labels": np.array(labels, dtype=np.int64),
        mark: np.array(marks, dtype=bool),
    }


@register("ade20k")
def ade20k(name: str, split: str, *, root: str | Path | None) -> SceneDataset:
    """The scene parsing benchmark of 2016: images/training/, annotations/training/, ... and objectInfo150.txt.

    Targets are uint8 [H, W] of 150 classes, and 255 where the annotation says 0: no class.
    """
    source = "http://sceneparsing.csail.mit.edu"
    folders = {"train": "training", "val": "validation"}
    checked_split(name, split, tuple(folders))
    base = root_of(name, root, source)
    layout = "images/training, images/validation, annotations/training and annotations/validation"
    place, maps = (found(name, base, layout, source, f"{kind}/{folders[split]}") for kind in ("images", "annotations"))
    paths = sorted(place.glob("*.jpg"))
    if not paths:
        fail(name, str(place), "hold .jpg files", "none", f"get them from {source}", FileNotFoundError)
    listing = base / "objectInfo150.txt"
    lines = listing.read_text().splitlines()[1:] if listing.is_file() else []
    classes = [line.split("\t")[-1].split(",")[0].strip() for line in lines] if len(lines) == 150 else [str(label) for label in range(150)]
    told = [maps / f"{path.stem}.png" for path in paths]
    _all_there(name, told)
    return SceneDataset(paths, classes, told, _from_one)


def _from_one(path: Path) -> np.ndarray:
    """Classes that count from 1. Of 8 bits, 0 - 1 is 255."""
    return read_map(path) - np.uint8(1)


def read_map(path: Path) -> np.ndarray:
    """uint8 [H, W]: the numbers in a PNG of palette or grey colours."""
    try:
        from PIL import Image
    except ImportError:
        needs("Pillow", "image files")
    try:
        with Image.open(path) as image:
            array = np.array(image)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise CorruptImage(path, error) from error
    if array.ndim != 2 or array.dtype != np.uint8:
        raise CorruptImage(path, f"{array.dtype} {list(array.shape)} instead of a map of classes")
    return array
