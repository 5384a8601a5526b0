"""How far an evaluation is: a bar in a terminal, lines elsewhere, nothing in processes but the first."""

import sys
import time
from contextlib import contextmanager
from typing import Any


class Progress:
    """Sets done of all, and samples of the current one."""

    def __init__(self, sets: int, done: int, *, quiet: bool = False):
        self.sets, self.done, self.quiet = sets, done, quiet
        self._bar = self._whole = self._current = None

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stderr.isatty():
            self._bar = _rich_bar()
        if self._bar is not None:
            self._bar.start()
            self._whole = self._bar.add_task("sets", total=self.sets, completed=self.done)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def during(self, name: str, samples: int):
        """Around one set; gives what is to be called with numbers of samples."""
        started, seen = time.monotonic(), 0
        current = self._bar.add_task(name, total=samples) if self._bar is not None else None

        def advance(count: int) -> None:
            nonlocal seen
            seen += count
            if current is not None:
                self._bar.update(current, completed=min(seen, samples))

        try:
            yield advance
        finally:
            if current is not None:
                self._bar.remove_task(current)
        self.done += 1
        self.say(f"[{self.done}/{self.sets}] {name}", time.monotonic() - started)
        if self._bar is not None:
            self._bar.update(self._whole, completed=self.done)

    def say(self, text: str, seconds: float) -> None:
        if self.quiet:
            return
        line = f"{text}  {seconds:.1f} s"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))
