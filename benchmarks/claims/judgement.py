"""When a claim held: the rule, which was fixed before anything was run.

A part of a claim says that some difference is above zero. The seeds give as many differences, each between runs of one seed, and Student's t
their 95 % interval. The part held if the interval is above zero; weakly, if only its mean is; otherwise it did not hold, and if the whole
interval is below zero, the opposite held. Fewer than three seeds tell nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
# accuracies of few images repeat: two seeds that agree by chance would prove anything
FEWEST_SEEDS = 3
HELD, WEAKLY, NOT, OPPOSITE, UNKNOWN = "held", "held weakly", "did not hold", "the opposite held", "not known"


class Interval(NamedTuple):
    """The mean of some values, and where their expectation lies; the bounds are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    count: int


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    from scipy.stats import t

    count = len(values)
    if not count:
        raise ValueError("interval: expected at least one value, got none")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    margin = float(t.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - margin, mean + margin, count)


def verdict(found: Interval | None) -> str:
    if found is None or found.count < FEWEST_SEEDS:
        return UNKNOWN
    if found.low > 0:
        return HELD
    if found.high < 0:
        return OPPOSITE
    return WEAKLY if found.mean > 0 else NOT
