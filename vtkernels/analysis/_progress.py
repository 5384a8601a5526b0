"""Progress of long work, and a way to stop it that keeps what is done."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("vtkernels")
# seconds between two lines of a log
_PATIENCE = 30.0


class Progress:
    """How far a piece of work is. `interrupted` is True after Ctrl-C."""

    def __init__(self, what: str, total: int | None):
        self.what, self.total, self.done = what, total, 0
        self.interrupted = False
        self._told = time.monotonic()

    def advance(self, note: str = "") -> None:
        """One more step is done."""
        self.done += 1
        if time.monotonic() - self._told > _PATIENCE:
            self._told = time.monotonic()
            log.info("%s: %s%s%s", self.what, self.done, f" of {self.total}" if self.total else "", note and f", {note}")


class _Bar(Progress):
    """The same as a line in a terminal."""

    def __init__(self, what: str, total: int | None, bar: Any):
        super().__init__(what, total)
        self._bar, self._task = bar, bar.add_task(what, total=total, note="")

    def advance(self, note: str = "") -> None:
        self.done += 1
        self._bar.update(self._task, advance=1, note=note)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """Steps of some work: a bar where there is a terminal (and rich), else lines in the log.

    Ctrl-C ends the block, not the program: what follows it can save what the block left behind.
    """
    bar = _terminal_bar()
    found = Progress(what, total) if bar is None else _Bar(what, total, bar)
    if bar is not None:
        bar.start()
    try:
        yield found
    except KeyboardInterrupt:
        found.interrupted = True
        log.warning("%s: interrupted after %s steps; what is done is kept", what, found.done)
    finally:
        if bar is not None:
            bar.stop()


def _terminal_bar() -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    return Bar(*columns, console=Console(stderr=True), transient=True)
