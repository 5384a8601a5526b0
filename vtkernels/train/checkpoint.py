"""Checkpoints on the disk: whole or not there. They are written beside, flushed, and renamed."""

import contextlib
import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vtkernels.train.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT)
# marks an entry of an archive as one without content: for such a tensor, torch gives whatever lies in memory
FOLDER = 0x10


@contextlib.contextmanager
def atomically(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A path beside `path` for a file or a folder, which takes its place when the block has ended well; what was there is kept as `keep`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    remove(beside)
    try:
        yield beside
        for part in (beside, *beside.rglob("*")):
            _flush(part)
        take_place(beside, path, keep)
    except BaseException as error:
        remove(beside)
        if isinstance(error, OSError) and error.errno in FULL:
            raise CheckpointError(error.errno, f"no space is left to write {path}; make room, and go on") from error
        raise


def probe(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def take_place(beside: Path, path: Path, keep: Path | None = None) -> None:
    """A kill within this leaves what was there under its other name, where readers look for it, too."""
    old = keep or path.with_name(f".{path.name}.old")
    if path.exists() and (keep is not None or path.is_dir()):
        # a folder does not replace another one
        remove(old)
        os.replace(path, old)
    os.replace(beside, path)
    _flush(path.parent)
    if keep is None:
        remove(old)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def duplicate(source: Path, target: Path) -> None:
    """The same content under a second name, for no space where the file system allows that."""
    with atomically(target) as beside:
        if source.is_dir():
            shutil.copytree(source, beside, copy_function=_link)
        else:
            _link(source, beside)


def write(state: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU. Nothing in it is run, and every byte is checked."""
    if not path.is_file():
        raise CheckpointError(errno.ENOENT, f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            folders = (entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER)
            damaged = archive.testzip() or next(folders, None)
        if damaged is not None:
            raise CheckpointError(errno.EIO, f"checkpoint {path} is damaged ({damaged})")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(error.errno, f"checkpoint {path} may not be read ({error.strerror})") from error
    # what a wrong byte leads to depends on where it is: compressed data where there is none, places before the file's beginning, unknown names
    except Exception as error:
        raise CheckpointError(errno.EIO, f"checkpoint {path} is damaged ({str(error) or type(error).__name__})") from error


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # some file systems know no links
        shutil.copyfile(source, target)


def _flush(path: Path) -> None:
    """To the disk itself: a renamed file without its content would be worse than none."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
