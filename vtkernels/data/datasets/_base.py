"""What all data sets share: images as arrays, labels known without reading an image, and errors that say what to do."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from torch.utils.data import Dataset

from vtkernels._core.check import fail


class Statistics(NamedTuple):
    """Mean and standard deviation of the channels, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET_STATISTICS = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class CorruptImage(ValueError):
    """A file that is there and holds no readable image; `path` names it."""

    def __init__(self, path: Path | str, reason: object):
        super().__init__(f"{path}: expected a readable image, got {reason}; replace the file, or load with on_corrupt='skip'")
        self.path, self.reason = str(path), str(reason)

    def __reduce__(self):
        return type(self), (self.path, self.reason)


class ImageDataset(Dataset):
    """Pairs (image, target): a uint8 array [H, W, C] and, unless the set says otherwise, the index of a class.

    Attributes:
        classes: names, by index.
        targets: int64 array of all labels.
        statistics: what to normalise with.
    """

    def __init__(self, classes: Sequence[str], targets: Any, statistics: Statistics = IMAGENET_STATISTICS):
        self.classes = tuple(classes)
        self.targets = np.asarray(targets, dtype=np.int64)
        self.statistics = statistics

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        index = self.position(index)
        return self.image(index), self.target(index)

    def position(self, index: int) -> int:
        """A valid index from one that may count from the end."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index {index} is out of range for {len(self)} samples")
        return index % len(self)

    def image(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def target(self, index: int) -> Any:
        return int(self.targets[index])


class ArrayDataset(ImageDataset):
    """Images that lie in one array [N, H, W, C]."""

    def __init__(self, images: np.ndarray, targets: Any, classes: Sequence[str], statistics: Statistics = IMAGENET_STATISTICS):
        super().__init__(classes, targets, statistics)
        self.images = images

    def image(self, index: int) -> np.ndarray:
        # a copy, so that work in place on a sample leaves the set alone
        return np.array(self.images[index])


class FileDataset(ImageDataset):
    """Images in files of their own, opened with Pillow when they are asked for."""

    def __init__(self, paths: Sequence[Path], targets: Any, classes: Sequence[str], statistics: Statistics = IMAGENET_STATISTICS):
        super().__init__(classes, targets, statistics)
        labels_within(type(self).__name__, self.targets, 0, len(self.classes) - 1)
        self.paths = [str(path) for path in paths]

    def image(self, index: int) -> np.ndarray:
        return read_image(self.paths[index])


def read_image(path: Path | str) -> np.ndarray:
    """RGB pixels [H, W, 3] of an image file. An unreadable one raises CorruptImage, an absent one FileNotFoundError."""
    try:
        from PIL import Image
    except ImportError:
        needs("Pillow", "image files")
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    # Pillow's plugins answer damaged files with many kinds of errors; whichever it was, this image cannot be read
    except Exception as error:
        raise CorruptImage(path, error) from error


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a MATLAB file, structures as records."""
    try:
        from scipy.io import loadmat
    except ImportError:
        needs("SciPy", "MATLAB files")
    try:
        return loadmat(path, squeeze_me=False, struct_as_record=True)
    except Exception as error:
        raise ValueError(f"{path}: expected a MATLAB file of version 5 to 7.2, got {error}; fetch it anew") from error


def read_npy(path: Path, mmap_mode: str | None = None) -> np.ndarray:
    """A NumPy file of numbers; one that holds pickled objects is refused."""
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected a complete NumPy file of numbers, got {error}; fetch it anew") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected a NumPy file of one array, got an archive of several; fetch it anew")
    return array


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected a complete JSON file, got {error}; fetch it anew") from error


def needs(library: str, what: str) -> NoReturn:
    raise ImportError(f"vtkernels.data: {what}: expected {library} to be installed, got no such package; try pip install 'vtkernels[data]'") from None


def checked_split(name: str, split: str, splits: Sequence[str]) -> str:
    if split not in splits:
        fail(name, "split", f"be one of {', '.join(splits)}", repr(split))
    return split


def root_of(name: str, root: Path | str | None, source: str) -> Path:
    """The folder of the files of a set, which must be given and exist."""
    if root is None or not Path(root).is_dir():
        got = "None" if root is None else f"{str(root)!r}, which is no folder"
        fail(name, "root", "be the folder with the set's files", got, f"nothing is downloaded; get them from {source}", FileNotFoundError)
    return Path(root)


def found(name: str, root: Path, layout: str, source: str, *candidates: str) -> Path:
    """The first of several files or folders under root that exists; `layout` tells what should be there."""
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    fail(name, f"{root}", f"hold {layout}", f"{there}", f"{candidates[0]} is missing, get it from {source}", FileNotFoundError)


def same_length(name: str, images: Sequence, targets: Sequence) -> None:
    if len(images) != len(targets):
        fail(name, "labels", f"be as many as the images ({len(images)})", len(targets), "the files do not belong together; fetch them anew")


def labels_within(name: str, labels: np.ndarray, least: int, most: int) -> None:
    if labels.size and not least <= labels.min() <= labels.max() <= most:
        fail(name, "labels", f"lie in {least}..{most}", f"{labels.min()}..{labels.max()}", "fetch the files anew")
