"""From a level to an operation's argument: timm's table, and that of the AutoAugment paper.

Both are functions of (stream, level, height, width) that return a step for `apply`; a sign is negative half of the time.
"""

from collections.abc import Callable
from typing import Any

from vtkernels.data.augment.image import Step

Level = Callable[[Any, float, int, int], Step]


def _signed(stream, value: float) -> float:
    return -value if stream.uniform() > 0.5 else value


def _plain(op: str) -> Level:
    return lambda stream, level, height, width: (op,)


def _number(op: str, value: Callable[[float], float]) -> Level:
    return lambda stream, level, height, width: (op, value(level))


def _either_way(op: str, value: Callable[[float], float]) -> Level:
    return lambda stream, level, height, width: (op, _signed(stream, value(level)))


def _translate(op: str, share: Callable[[float], float]) -> Level:
    """By a share of the side."""
    along_width = op == "translate_x"
    return lambda stream, level, height, width: (op, _signed(stream, share(level)) * (width if along_width else height))


ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
_PLAIN = {op: _plain(op) for op in ("autocontrast", "equalize", "invert")}


def _fewer_bits(level: float) -> int:
    return min(8, int(level / 10 * 4))


def _threshold(level: float) -> int:
    return min(256, int(level / 10 * 256))


# timm's; levels from 0 to 10
TIMM: dict[str, Level] = {
    **_PLAIN,
    "rotate": _either_way("rotate", lambda level: level / 10 * 30),
    "posterize": _number("posterize", _fewer_bits),
    "posterize_original": _number("posterize", lambda level: min(8, _fewer_bits(level) + 4)),
    "solarize": _number("solarize", _threshold),
    "solarize_add": _number("solarize_add", lambda level: min(128, int(level / 10 * 110))),
    **{op: _number(op, lambda level: level / 10 * 1.8 + 0.1) for op in ENHANCEMENTS},
    "shear_x": _either_way("shear_x", lambda level: level / 10 * 0.3),
    "shear_y": _either_way("shear_y", lambda level: level / 10 * 0.3),
    "translate_x": _translate("translate_x", lambda level: level / 10 * 0.45),
    "translate_y": _translate("translate_y", lambda level: level / 10 * 0.45),
}


def _around_one(op: str, levels: int, least: float) -> Level:
    return lambda stream, level, height, width: (op, max(least, 1 + _signed(stream, level / levels * 0.9)))


# timm's, where a larger level always changes more
TIMM_INCREASING: dict[str, Level] = TIMM | {
    "posterize": _number("posterize", lambda level: max(0, 4 - _fewer_bits(level))),
    "solarize": _number("solarize", lambda level: 256 - _threshold(level)),
    **{op: _around_one(op, 10, least=0.1) for op in ENHANCEMENTS},
}


def _cutout(stream, level: float, height: int, width: int) -> Step:
    """A square around any pixel, cut off at the edges."""
    row, column = stream.below(height), stream.below(width)
    half = int(level / 9 * 100 / 331 * min(height, width))
    return ("cutout", column - half, row - half, column + half, row + half)


# the paper's; ten levels from 0 to 9
PAPER: dict[str, Level] = {
    **_PLAIN,
    "rotate": _either_way("rotate", lambda level: level / 9 * 30),
    "posterize": _number("posterize", lambda level: max(0, round(8 - level / 9 * 4))),
    "solarize": _number("solarize", lambda level: 256 - level / 9 * 256),
    **{op: _around_one(op, 9, least=0.0) for op in ENHANCEMENTS},
    "shear_x": _either_way("shear_x", lambda level: level / 9 * 0.3),
    "shear_y": _either_way("shear_y", lambda level: level / 9 * 0.3),
    "translate_x": _translate("translate_x", lambda level: level / 9 * 150 / 331),
    "translate_y": _translate("translate_y", lambda level: level / 9 * 150 / 331),
    "cutout": _cutout,
}
