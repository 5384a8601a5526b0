"""Checkpoints that are whole or not there: written beside, flushed to the disk, and renamed."""

import contextlib
import errno
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vtkernels.train.errors import CheckpointError

log = logging.getLogger("vtkernels")

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


@contextlib.contextmanager
def atomically(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block has ended well; what was there is kept as `keep`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    try:
        yield beside
        _flush(beside)
        if keep is not None and path.exists():
            # between this and the next line a kill leaves only `keep`, which readers look for, too
            os.replace(path, keep)
        os.replace(beside, path)
        _flush(path.parent)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(error.errno, f"no space is left to write {path}; what was saved before is whole; make room and resume") from error
        raise


def write_last(state: dict[str, Any], folder: Path) -> Path:
    """The last checkpoint; the one before stays as `previous.pt`, should this one be damaged."""
    with atomically(folder / LAST, keep=folder / PREVIOUS) as beside, open(beside, "wb") as file:
        torch.save(state, file)
    return folder / LAST


def keep_as_best(folder: Path) -> Path:
    """The last checkpoint is the best one, too."""
    best = folder / BEST
    with atomically(best) as beside:
        try:
            os.link(folder / LAST, beside)
        except OSError:
            # some file systems know no links
            shutil.copyfile(folder / LAST, beside)
    return best


def read(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU. Nothing in it is run, and every byte is checked."""
    if not path.is_file():
        raise CheckpointError(errno.ENOENT, f"no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(errno.EIO, f"checkpoint {path} is damaged: {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(errno.EIO, f"checkpoint {path} is damaged: {error}") from error


def read_last(folder: Path) -> tuple[dict[str, Any], Path]:
    """The newest checkpoint of a run that can be read, and where it lies."""
    failures = []
    for name in (LAST, PREVIOUS):
        try:
            state = read(folder / name)
        except CheckpointError as error:
            failures.append(error)
            continue
        if failures and (folder / LAST).exists():
            log.warning("%s; going on from the one before it, %s", failures[0].strerror, folder / name)
        return state, folder / name
    raise CheckpointError(failures[0].errno, f"{folder} has no checkpoint that can be read: {'; '.join(error.strerror for error in failures)}")


def exists(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


def _flush(path: Path) -> None:
    """To the disk itself: a renamed file without its content would be worse than none."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
