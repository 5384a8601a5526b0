"""Numbers as people read them."""

import math


def shown(name: str, value: float) -> str:
    """A metric by its name: shares of samples are percentages."""
    if not math.isfinite(value):
        return str(value)
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4g}"


def is_share(name: str) -> bool:
    return name.startswith("top") or name.endswith("accuracy")


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02} min"


def memory(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f} images/s" if images_per_second >= 100 else f"{images_per_second:.3g} images/s"
