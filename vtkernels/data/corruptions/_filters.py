"""Filters, zooms and random fields that several corruptions use. Images are float arrays [H, W] or [H, W, C]."""

import math

import numpy as np
from scipy import ndimage

GREY = np.array([0.299, 0.587, 0.114])


def gaussian(image: np.ndarray, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """Each channel by itself."""
    sigmas = (sigma, sigma, 0)[: image.ndim]
    return ndimage.gaussian_filter(image, sigmas, mode=mode, truncate=truncate)


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each channel by itself, borders reflected about the outermost pixels."""
    return ndimage.correlate(image, kernel if image.ndim == 2 else kernel[..., None], mode="mirror")


def disk(radius: float, alias: float) -> np.ndarray:
    """A disk of weight 1, its rim softened by a small Gaussian.

    A disk that reaches the rim of its array (radius 8 and 10) gains about 1 % from the border's reflection, as published.
    """
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    along = np.arange(-reach, reach + 1)
    kernel = (along[:, None] ** 2 + along**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    soft = np.exp(-0.5 * ((np.arange(taps) - taps // 2) / alias) ** 2)
    return correlate(kernel, np.outer(soft, soft) / soft.sum() ** 2)


def motion(image: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """One-sided Gaussian smear along `angle` degrees, by whole pixels; beyond the border the border goes on."""
    weights = np.exp(-0.5 * (np.arange(2 * int(radius) + 1) / sigma) ** 2)
    height, width = image.shape[:2]
    rows, columns = np.arange(height), np.arange(width)
    direction = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    smeared = np.zeros(image.shape)
    for distance, weight in enumerate(weights / weights.sum()):
        down, right = (math.ceil(distance * part - 0.5) for part in direction)
        smeared += weight * image[np.clip(rows + down, 0, height - 1)][:, np.clip(columns + right, 0, width - 1)]
    return smeared


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image, enlarged to its size."""
    size = image.shape[:2]
    cut = [math.ceil(side / factor) for side in size]
    top, left = ((side - part) // 2 for side, part in zip(size, cut, strict=True))
    large = ndimage.zoom(image[top : top + cut[0], left : left + cut[1]], (factor, factor, 1)[: image.ndim], order=1)
    top, left = ((have - side) // 2 for have, side in zip(large.shape[:2], size, strict=True))
    return large[top : top + size[0], left : left + size[1]]


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Diamond-square heights [size, size] in [0, 1], periodic; `size` is a power of 2.

    The noise added at each scale is uniform up to the *square* of an amplitude that starts at 100 and is divided by `decay`, as published.
    """
    heights, amplitude, step = np.zeros((size, size)), 100.0, size

    def displaced(total: np.ndarray) -> np.ndarray:
        return total / 4 + amplitude * rng.uniform(-amplitude, amplitude, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        along_rows = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = displaced(along_rows + np.roll(along_rows, -1, axis=1))
        centres = heights[half::step, half::step]
        heights[::step, half::step] = displaced(corners + np.roll(corners, -1, axis=1) + centres + np.roll(centres, 1, axis=0))
        heights[half::step, ::step] = displaced(along_rows + centres + np.roll(centres, 1, axis=1))
        step, amplitude = half, amplitude / decay
    heights -= heights.min()
    return heights / max(heights.max(), 1e-30)


def canny(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where a grey image (0..255) has edges: ridges of the gradient above `low` that touch one above `high`."""
    across, down = ndimage.sobel(image, axis=1, mode="nearest"), ndimage.sobel(image, axis=0, mode="nearest")
    strength = abs(across) + abs(down)
    padded = np.pad(strength, 1)
    # the direction in one of four sectors, and the neighbours on its line
    sector = np.rint(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(image.shape, dtype=bool)
    height, width = image.shape
    for number, (dy, dx) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        ridge |= (sector == number) & (strength > behind) & (strength >= ahead)
    labels, _ = ndimage.label(ridge & (strength > low), structure=np.ones((3, 3)))
    strong = np.unique(labels[ridge & (strength > high)])
    return np.isin(labels, strong[strong > 0])


def equalised(image: np.ndarray) -> np.ndarray:
    """uint8 values spread so that their distribution is even."""
    counts = np.bincount(image.reshape(-1), minlength=256)
    total = counts.cumsum()
    first = total[np.flatnonzero(counts)[0]]
    if total[-1] == first:
        return image
    return np.clip(np.rint((total - first) * (255 / (total[-1] - first))), 0, 255).astype(np.uint8)[image]
