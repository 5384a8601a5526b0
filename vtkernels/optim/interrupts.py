"""Ctrl-C at a moment when what a kernel has written is not yet noted."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A first Ctrl-C waits for the end of the block, a second one does not.

    Python raises KeyboardInterrupt as soon as a kernel returns: before anybody could note that the weights are other ones now.
    """
    usual = signal.getsignal(signal.SIGINT)
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []

    def wait(*what: Any) -> None:
        if came:
            usual(*what)
        came.append(what)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        usual(*came[0])
