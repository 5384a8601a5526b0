"""Random numbers of a sample: the same whatever the number of workers, and whoever else drew before."""

from vtkernels._core.check import fail
from vtkernels.data.augment.native import imgops

_WORDS = 1 << 64


def Stream(seed: int, item: int = 0):
    """Philox4x32-10 under the key `seed`: number n of the stream is the first word of counter (n, item).

    `.uniform()` and `.uniform(low, high)`, `.below(count)`, `.normal()`, `.gamma(alpha)` and `.word()` draw, one after the other.
    """
    return imgops().Stream(check_seed("Stream", seed), item)


def sample_seed(seed: int, *place: int) -> int:
    """The 64-bit seed of one place of a run, such as (epoch, index): another one where any of the numbers differs.

    Each number in turn is added to the state, which then takes a step of SplitMix64.
    """
    state = check_seed("sample_seed", seed)
    for number in (len(place), *place):
        state = (state + int(number) + 0x9E3779B97F4A7C15) % _WORDS
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % _WORDS
        state = (state ^ state >> 27) * 0x94D049BB133111EB % _WORDS
        state ^= state >> 31
    return state


def check_seed(what: str, seed: int) -> int:
    """As an unsigned number of 64 bits; a numpy integer will do."""
    try:
        number = seed.__index__()
    except AttributeError:
        fail(what, "seed", "be an int", repr(seed), "try sample_seed(seed, epoch, index)", TypeError)
    if not -(1 << 63) <= number < _WORDS:
        fail(what, "seed", "fit 64 bits", number, "try seed % 2**64")
    return number % _WORDS
