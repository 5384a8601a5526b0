"""How a run may end before its time."""


class NonFiniteLoss(ArithmeticError):
    """The loss or a weight is no finite number."""


class CheckpointError(OSError):
    """A checkpoint could not be written or read."""

    def __str__(self) -> str:
        # the message says it in words: no number before it
        return self.strerror or super().__str__()


class LoaderDied(RuntimeError):
    """A process that reads data was killed."""


class Interrupted(SystemExit):
    """A signal asked the run to stop; it is saved, and can be resumed. Uncaught, it ends the process with the signal's exit status."""

    def __init__(self, signum: int, message: str):
        super().__init__(128 + signum)
        self.signum, self.message = signum, message

    def __str__(self) -> str:
        return self.message
