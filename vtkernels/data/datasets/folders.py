"""Folders of images by class: ImageNet, its subsets and its test sets, DomainNet, and anybody's own."""

import os
import re
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import FileDataset, Statistics, checked_split, found, labels_within, read_json, root_of
from vtkernels.data.datasets._imagenet import NATURAL_ADVERSARIAL_IDS, RENDITION_IDS
from vtkernels.data.datasets._registry import register
from vtkernels.data.datasets.subsets import Subset, fraction_subset

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff")
IMAGENET = "https://www.image-net.org/download.php"
TINY_IMAGENET = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
TINY_STATISTICS = Statistics((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
Names = Sequence[str] | str | Path | None
# ImageNet-21k has no validation set of its own: every so many images are held back
HELD_BACK = 256


@register("folder", "imagenet", "imagenet-100")
def folder(
    name: str, split: str, *, root: str | Path | None, classes: Names = None, images: Names = None, fraction: float = 1.0, seed: int = 0
) -> FileDataset | Subset:
    """Images at <root>/<split>/<class>/<image>, classes in the order of their names; split "all" takes <root>/<class>/<image>.

    Args:
        classes: only these, as a list or a text file with one a line (ImageNet-100's list); labels count through them in the order of their names.
        images: only these, by "<class>/<file>" or "<file>", as a list or a text file with one a line (the published 1 % and 10 % lists).
        fraction: a part of what is left, drawn by `seed`; the part for 1/10 lies inside the one for 1/4.
    """
    source = "its authors" if name == "folder" else IMAGENET
    base = root_of(name, root, source)
    place = base if split == "all" else found(name, base, f"a folder {split}/<class>/<image> for the split {split!r}", source, split)
    dataset = _class_folders(name, place, names=_lines(classes), source=source)
    if name == "imagenet-100" and len(dataset.classes) != 100:
        fail(name, str(place), "hold 100 classes", len(dataset.classes), "of the whole of ImageNet the option classes takes some")
    wanted = _lines(images)
    if wanted is not None:
        dataset = _only_images(name, dataset, wanted)
    return dataset if fraction == 1.0 else fraction_subset(dataset, fraction, seed=seed)


def _lines(names: Names) -> list[str] | None:
    """A list as it is, or the lines of a text file."""
    if isinstance(names, (str, Path)):
        return [line.strip() for line in Path(names).read_text().splitlines() if line.strip() and not line.startswith("#")]
    return None if names is None else [str(name) for name in names]


def _known(line: str, known: Container[str]) -> str:
    """The name in a line of a list, behind which a description may stand; names may have blanks themselves."""
    return line if line in known else line.split()[0]


def _class_folders(name: str, place: Path, names: list[str] | None = None, source: str = "its authors") -> FileDataset:
    there = sorted(path.name for path in place.iterdir() if path.is_dir() and path.name[0] != ".")
    chosen = there if names is None else [_known(line, there) for line in names]
    missing = sorted(set(chosen) - set(there))
    if missing or not there:
        got = f"no {', '.join(missing[:5])}" if missing else "no folder at all"
        fail(name, str(place), "hold one folder of images a class", got, f"get the set from {source}", FileNotFoundError)
    classes = sorted(set(chosen))
    paths, targets = [], []
    for target, label in enumerate(classes):
        files = _image_files(place / label)
        paths += files
        targets += [target] * len(files)
    if not paths:
        fail(name, str(place), f"hold images ({' '.join(EXTENSIONS)})", "none in any class's folder", f"get the set from {source}", FileNotFoundError)
    return FileDataset(paths, targets, classes)


def _image_files(place: Path) -> list[str]:
    """Sorted paths, through links too; as strings, of which ImageNet has a million."""
    paths, visited = [], set()
    for folder, inner, names in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            # a link back to where the walk was
            inner.clear()
            continue
        visited.add(real)
        # of two links to one folder it is always the same that counts
        inner.sort()
        paths += [os.path.join(folder, name) for name in names if name.lower().endswith(EXTENSIONS) and name[0] != "."]
    return sorted(paths)


def _only_images(what: str, dataset: FileDataset, wanted: list[str]) -> Subset:
    """In the order of the list; a name that is not there is an error, not a smaller set."""
    by_name, index = {}, {}
    for position, path in enumerate(dataset.paths):
        folder, name = path.split(os.sep)[-2:]
        index[f"{folder}/{name}"] = position
        # a file name that two classes have says nothing alone
        by_name[name] = None if name in by_name else position
    index |= {name: position for name, position in by_name.items() if position is not None}
    wanted = [_known(line, index) for line in wanted]
    missing = [entry for entry in wanted if entry not in index]
    if missing:
        hint = "does the list belong to this split, and does a name that several classes have tell the class?"
        fail(what, "images", "name files of the set", f"{len(missing)} others, such as {missing[0]!r}", hint)
    return Subset(dataset, [index[entry] for entry in wanted])


@register("imagenet-21k")
def imagenet_21k(name: str, split: str, *, root: str | Path | None) -> FileDataset:
    """All of ImageNet, <class>/<image>: every 256th image of the sorted list is "val", the others are "train"."""
    checked_split(name, split, ("train", "val", "all"))
    whole = _class_folders(name, root_of(name, root, IMAGENET), source=IMAGENET)
    held = np.arange(len(whole)) % HELD_BACK == 0
    kept = np.flatnonzero({"train": ~held, "val": held, "all": np.ones_like(held)}[split])
    return FileDataset([whole.paths[index] for index in kept], whole.targets[kept], whole.classes)


@register("tiny-imagenet")
def tiny_imagenet(name: str, split: str, *, root: str | Path | None) -> FileDataset:
    """Tiny-ImageNet, 200 classes of 64 pixels: train/<class>/images/, and val/images/ with val/val_annotations.txt."""
    checked_split(name, split, ("train", "val"))
    base, layout = root_of(name, root, TINY_IMAGENET), "train/<class>/images/, val/images/ and val/val_annotations.txt"
    train = _class_folders(name, found(name, base, layout, TINY_IMAGENET, "train"), source=TINY_IMAGENET)
    if split == "train":
        return FileDataset(train.paths, train.targets, train.classes, TINY_STATISTICS)
    images = found(name, base, layout, TINY_IMAGENET, "val/images")
    listing = found(name, base, layout, TINY_IMAGENET, "val/val_annotations.txt")
    paths, targets = [], []
    for number, line in enumerate(filter(str.strip, listing.read_text().splitlines()), 1):
        words = line.split()
        if len(words) < 2 or words[1] not in train.classes:
            fail(name, f"{listing}:{number}", "read '<image> <class> <box>' with a class of train/", repr(line))
        paths.append(images / words[0])
        targets.append(train.classes.index(words[1]))
    return FileDataset(paths, targets, train.classes, TINY_STATISTICS)


@register("imagenet-c")
def imagenet_c(name: str, split: str, *, root: str | Path | None, corruption: str, severity: int) -> FileDataset:
    """Images at <root>/<corruption>/<severity>/<class>/, or one folder deeper as the archives are grouped."""
    source = "https://github.com/hendrycks/robustness"
    checked_split(name, split, ("test", "val"))
    if severity not in (1, 2, 3, 4, 5):
        fail(name, "severity", "be 1, 2, 3, 4 or 5", severity)
    base = root_of(name, root, source)
    groups = sorted(path.name for path in base.iterdir() if (path / corruption).is_dir())
    candidates = [f"{corruption}/{severity}", *(f"{group}/{corruption}/{severity}" for group in groups)]
    return _class_folders(name, found(name, base, "<corruption>/<severity>/<class>/<image>", source, *candidates), source=source)


# of sets of 200 of ImageNet's classes: which, and where the files are
_OF_200 = {
    "imagenet-r": (RENDITION_IDS, "https://github.com/hendrycks/imagenet-r"),
    "imagenet-a": (NATURAL_ADVERSARIAL_IDS, "https://github.com/hendrycks/natural-adv-examples"),
}


@register("imagenet-r", "imagenet-a")
def imagenet_of_200(name: str, split: str, *, root: str | Path | None, labels: str = "own") -> FileDataset:
    """200 classes of ImageNet. `labels` "own" counts 0 to 199, "imagenet" gives the places among ImageNet's 1000.

    `imagenet_ids` of the set are those 200 places: the usual protocol compares the logits of these classes only.
    """
    ids, source = _OF_200[name]
    checked_split(name, split, ("test", "val"))
    if labels not in ("own", "imagenet"):
        fail(name, "labels", "be 'own' or 'imagenet'", repr(labels))
    dataset = _class_folders(name, root_of(name, root, source), source=source)
    if len(dataset.classes) != len(ids):
        fail(name, str(root), f"hold the folders of {len(ids)} classes", len(dataset.classes), f"get it anew from {source}")
    dataset.imagenet_ids = np.array(ids)
    if labels == "imagenet":
        dataset.targets = dataset.imagenet_ids[dataset.targets]
    return dataset


@register("imagenet-v2")
def imagenet_v2(name: str, split: str, *, root: str | Path | None) -> FileDataset:
    """ImageNet-V2: folders 0 to 999 are numbers of classes, which sorted as words would come in another order."""
    source = "https://github.com/modestyachts/ImageNetV2"
    checked_split(name, split, ("test", "val"))
    dataset = _class_folders(name, root_of(name, root, source), source=source)
    strange = [label for label in dataset.classes if not label.isdecimal() or int(label) > 999]
    if strange:
        fail(name, str(root), "hold folders called 0 to 999", strange[0])
    numbers = np.array([int(label) for label in dataset.classes])
    return FileDataset(dataset.paths, numbers[dataset.targets], [str(number) for number in range(1000)])


@register("imagenet-real")
def imagenet_real(name: str, split: str, *, root: str | Path | None, real: str | Path | None = None) -> "MultiLabelDataset":
    """ImageNet's validation images (anywhere under <root>/val or <root>) with the reassessed labels of real.json."""
    source = "https://github.com/google-research/reassessed-imagenet"
    checked_split(name, split, ("val", "test"))
    base = root_of(name, root, IMAGENET)
    place = base / "val" if (base / "val").is_dir() else base
    labels = read_json(Path(real) if real else found(name, base, "real.json", source, "real.json"))
    paths, lists = [], []
    # the list is in the order of the numbers in the file names, not in the order of the folders
    for path in sorted(map(Path, _image_files(place)), key=lambda path: path.name):
        number = re.search(r"_val_(\d{8})$", path.stem)
        if number is None or not 1 <= int(number[1]) <= len(labels):
            fail(name, path.name, f"be ILSVRC2012_val_<8 digits> with a number up to {len(labels)}", "another name")
        paths.append(path)
        lists.append(labels[int(number[1]) - 1])
    if not paths:
        fail(name, str(place), "hold ILSVRC2012_val_00000001.JPEG ...", "no image", f"get them from {IMAGENET}", FileNotFoundError)
    return MultiLabelDataset(paths, lists, [str(number) for number in range(1000)])


class MultiLabelDataset(FileDataset):
    """Images that may show several classes, or none: the target is a bool array with an entry a class.

    Attributes:
        labels: the classes of each image. Images without a label are not part of the set.
        targets: the first label of each, for what wants a single one; accuracy asks whether the prediction is *any* of them.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[Sequence[int]], classes: Sequence[str]):
        kept = [index for index, own in enumerate(labels) if own]
        self.labels = [tuple(labels[index]) for index in kept]
        labels_within(type(self).__name__, np.array([label for own in self.labels for label in own]), 0, len(classes) - 1)
        super().__init__([paths[index] for index in kept], [own[0] for own in self.labels], classes)

    def target(self, index: int) -> np.ndarray:
        target = np.zeros(len(self.classes), dtype=bool)
        target[list(self.labels[index])] = True
        return target


@register("domainnet")
def domainnet(name: str, split: str, *, root: str | Path | None, domain: str) -> FileDataset:
    """One domain by the official lists <domain>_train.txt and <domain>_test.txt of "<domain>/<class>/<image> <label>"."""
    source = "https://ai.bu.edu/M3SDA"
    checked_split(name, split, ("train", "test"))
    if domain not in DOMAINS:
        fail(name, "domain", f"be one of {', '.join(DOMAINS)}", repr(domain))
    base = root_of(name, root, source)
    listing = found(name, base, f"{domain}/, {domain}_train.txt and {domain}_test.txt", source, f"{domain}_{split}.txt")
    paths, targets, classes = [], [], {}
    for number, line in enumerate(filter(str.strip, listing.read_text().splitlines()), 1):
        path, _, label = line.rpartition(" ")
        if not path or not label.isdecimal():
            fail(name, f"{listing}:{number}", "read '<image> <label>'", repr(line))
        paths.append(base / path)
        targets.append(int(label))
        classes[int(label)] = Path(path).parent.name
    return FileDataset(paths, targets, [classes.get(index, str(index)) for index in range(max(classes, default=-1) + 1)])
