"""Random numbers of a sample: the same whatever the number of workers, and whoever else drew before."""

from vtkernels._core.check import fail
from vtkernels.data.augment.native import imgops

_WORDS = 1 << 64


def Stream(seed: int, item: int = 0):
    """Philox4x32-10 under the key `seed`: number n of the stream is the first word of counter (n, item).

    `.uniform()` and `.uniform(low, high)`, `.below(count)`, `.normal()`, `.gamma(alpha)` and `.word()` draw, one after the other.
    """
    return imgops().Stream(check_seed("Stream", seed), item)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 64-bit seed of one sample of one epoch of a run."""
    run = Stream(seed, (epoch % (1 << 32) << 32) ^ (index % _WORDS))
    return run.word() << 32 | run.word()


def check_seed(what: str, seed: int) -> int:
    """As an unsigned number of 64 bits; a numpy integer will do."""
    try:
        number = seed.__index__()
    except AttributeError:
        fail(what, "seed", "be an int", repr(seed), "try sample_seed(seed, epoch, index)", TypeError)
    if not -(1 << 63) <= number < _WORDS:
        fail(what, "seed", "fit 64 bits", number, "try seed % 2**64")
    return number % _WORDS
