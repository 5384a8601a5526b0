"""CIFAR-10 and CIFAR-100 from the archives for Python, and their corrupted test sets."""

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import ArrayDataset, Statistics, checked_split, found, labels_within, read_npy, root_of, same_length
from vtkernels.data.datasets._pickle import load_plain_pickle
from vtkernels.data.datasets._registry import register

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STATISTICS = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# archive, folder in it, files of train and test, the file of names, keys of names and labels
_PARTS = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "batches.meta"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python", ["train"], ["test"], "meta"),
}


@register("cifar10", "cifar100")
def cifar(name: str, split: str, *, root: str | Path | None, coarse: bool = False) -> ArrayDataset:
    """`root` holds the archive or the folder in it. `coarse` gives CIFAR-100's 20 superclasses."""
    checked_split(name, split, ("train", "test"))
    archive, folder, train, test, meta = _PARTS[name]
    if coarse and name == "cifar10":
        fail(name, "coarse", "be False", coarse, "only cifar100 has superclasses")
    base = root_of(name, root, SOURCE)
    place = found(name, base, f"{folder}/ or {archive}", SOURCE, folder, archive)
    names, labels = ("label_names", "labels") if name == "cifar10" else (("coarse" if coarse else "fine") + part for part in ("_label_names", "_labels"))

    images, targets = [], []
    wanted = train if split == "train" else test
    parts = _read_folder(place) if place.is_dir() else _read_archive(place, folder, [*wanted, meta])
    classes = [str(text, "ascii") if isinstance(text, bytes) else text for text in _field(parts(meta), names, name, meta)]
    for part in wanted:
        batch = parts(part)
        pixels = np.asarray(_field(batch, "data", name, part))
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
            fail(name, f"data of {part}", "be uint8 [N, 3072]", f"{pixels.dtype} {list(pixels.shape)}", f"get it anew from {SOURCE}")
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        targets.append(np.asarray(_field(batch, labels, name, part), dtype=np.int64))
        same_length(name, images[-1], targets[-1])
    images, targets = np.ascontiguousarray(np.concatenate(images)), np.concatenate(targets)
    labels_within(name, targets, 0, len(classes) - 1)
    return ArrayDataset(images, targets, classes, STATISTICS[name])


def _read_folder(folder: Path) -> Callable[[str], dict]:
    def read(part: str) -> dict:
        path = found(folder.name, folder, f"the file {part}", SOURCE, part)
        with path.open("rb") as file:
            return load_plain_pickle(file, str(path))

    return read


def _read_archive(archive: Path, folder: str, parts: list[str]) -> Callable[[str], dict]:
    """The pickles inside the archive, read in one pass where they lie: nothing is written to disk."""
    contents = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.removeprefix("./") in {f"{folder}/{part}" for part in parts}:
                    contents[Path(member.name).name] = tar.extractfile(member).read()
            # only at the end of the stream is its checksum compared
            while tar.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive}: expected a complete archive, got {error}; get it anew from {SOURCE}") from error

    def read(part: str) -> dict:
        if part not in contents:
            fail(folder, str(archive), f"hold {folder}/{part}", "no such member", f"get it anew from {SOURCE}", FileNotFoundError)
        return load_plain_pickle(contents[part], f"{archive}:{folder}/{part}")

    return read


def _field(batch: dict, key: str, name: str, part: str):
    """Python 2 wrote the keys as bytes."""
    for known in (key.encode(), key):
        if isinstance(batch, dict) and known in batch:
            return batch[known]
    fail(name, part, f"be a dictionary with {key!r}", type(batch).__name__, f"get it anew from {SOURCE}")


@register("cifar10-c", "cifar100-c")
def cifar_c(name: str, split: str, *, root: str | Path | None, corruption: str, severity: int | None = None) -> ArrayDataset:
    """`root` holds <corruption>.npy and labels.npy. `severity` 1 to 5, or None for all five after one another."""
    source = f"https://zenodo.org, 'CIFAR-{name[5:-2]}-C'"
    checked_split(name, split, ("test",))
    if severity not in (None, 1, 2, 3, 4, 5):
        fail(name, "severity", "be 1, 2, 3, 4, 5 or None", severity)
    base = root_of(name, root, source)
    layout = "<corruption>.npy and labels.npy"
    images = read_npy(found(name, base, layout, source, f"{corruption}.npy"), mmap_mode="r")
    targets = read_npy(found(name, base, layout, source, "labels.npy"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3) or len(images) % 5:
        fail(name, f"{corruption}.npy", "be uint8 [5 * N, 32, 32, 3]", f"{images.dtype} {list(images.shape)}", f"get it anew from {source}")
    same_length(name, images, targets)
    classes = CIFAR10_CLASSES if name == "cifar10-c" else tuple(str(number) for number in range(100))
    labels_within(name, targets, 0, len(classes) - 1)
    if severity is not None:
        count = len(images) // 5
        rows = slice(count * (severity - 1), count * severity)
        images, targets = images[rows], targets[rows]
    return ArrayDataset(images, targets, classes, STATISTICS[name[:-2]])
