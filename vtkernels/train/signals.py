"""SIGTERM and Ctrl-C as a wish that is granted between two updates."""

import signal
import threading
from typing import Any

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class StopSignals:
    """Inside, the first signal is noted in `asked`; a second Ctrl-C interrupts at once, for those who cannot wait."""

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        # only the main thread is told of signals
        if threading.current_thread() is threading.main_thread():
            for signum in NAMES:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        for signum, handler in self._before.items():
            # None: installed by something that is not Python
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, signum: int, frame: Any) -> None:
        if self.asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or signum
