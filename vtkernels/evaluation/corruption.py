"""Corruption errors. `errors[name]` holds the top-1 errors of one corruption, fractions, one for each severity from 1 to 5."""

from collections.abc import Mapping, Sequence

from vtkernels._core.check import fail

# AlexNet's mean error over the five severities, with which ImageNet-C's errors are divided
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
    # the extra ones, which no mean counts
    "speckle_noise": 0.845388,
    "gaussian_blur": 0.787108,
    "spatter": 0.717512,
    "saturate": 0.658248,
}
ALEXNET_CLEAN_ERROR = 0.4348
# the fifteen that are averaged
COUNTED = tuple(ALEXNET_ERRORS)[:15]
SEVERITIES = 5

Errors = Mapping[str, Sequence[float]]


def corruption_error(errors: Sequence[float], name: str) -> float:
    """CE in percent of AlexNet's: the ratio of sums over severities, not the mean of ratios."""
    return 100 * _total("corruption_error", name, errors) / (SEVERITIES * _alexnet("corruption_error", name))


def relative_corruption_error(errors: Sequence[float], name: str, clean_error: float) -> float:
    """What corruption adds to the clean error, in percent of what it adds to AlexNet's."""
    added = _total("relative_corruption_error", name, errors) - SEVERITIES * _fraction("relative_corruption_error", "clean_error", clean_error)
    return 100 * added / (SEVERITIES * (_alexnet("relative_corruption_error", name) - ALEXNET_CLEAN_ERROR))


def mean_corruption_error(errors: Errors, names: Sequence[str] = COUNTED) -> float:
    """mCE in percent: the mean CE of the fifteen corruptions of ImageNet-C, or of other `names`."""
    return _mean([corruption_error(own, name) for name, own in _chosen("mean_corruption_error", errors, names)])


def relative_mean_corruption_error(errors: Errors, clean_error: float, names: Sequence[str] = COUNTED) -> float:
    """Relative mCE in percent."""
    return _mean([relative_corruption_error(own, name, clean_error) for name, own in _chosen("relative_mean_corruption_error", errors, names)])


def mean_error(errors: Errors, names: Sequence[str] = COUNTED) -> float:
    """The plain mean over corruptions and severities, a fraction: what is reported on CIFAR-C. One minus it is the mean accuracy."""
    return _mean([_total("mean_error", name, own) / SEVERITIES for name, own in _chosen("mean_error", errors, names)])


def _chosen(what: str, errors: Errors, names: Sequence[str]) -> list[tuple[str, Sequence[float]]]:
    missing = [name for name in names if name not in errors]
    if missing or not names:
        fail(what, "errors", f"hold all of {', '.join(names) or 'some corruptions'}", f"none of {', '.join(missing)}", "or say which in names")
    return [(name, errors[name]) for name in names]


def _total(what: str, name: str, errors: Sequence[float]) -> float:
    if len(errors) != SEVERITIES:
        fail(what, f"errors of {name}", f"be {SEVERITIES}, one for each severity", len(errors))
    return sum(_fraction(what, f"errors of {name}", error) for error in errors)


def _fraction(what: str, name: str, error: float) -> float:
    if not 0 <= error <= 1:
        fail(what, name, "be fractions from 0 to 1", error, "divide percents by 100")
    return float(error)


def _alexnet(what: str, name: str) -> float:
    if name not in ALEXNET_ERRORS:
        fail(what, "name", f"be one of {', '.join(ALEXNET_ERRORS)}", repr(name), "others have no normaliser; mean_error needs none")
    return ALEXNET_ERRORS[name]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
