"""The 15 + 4 corruptions: each takes pixels [H, W, 3] in [0, 1], the severity's parameters and a generator, and gives such pixels unclipped."""

import io
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from vtkernels.data.corruptions import _filters as filters

Rng = np.random.Generator


def gaussian_noise(x: np.ndarray, sigma: float, rng: Rng) -> np.ndarray:
    return x + rng.normal(0, sigma, x.shape)


def shot_noise(x: np.ndarray, photons: float, rng: Rng) -> np.ndarray:
    return rng.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, amount: float, rng: Rng) -> np.ndarray:
    replaced, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    return np.where(replaced, salt.astype(x.dtype), x)


def speckle_noise(x: np.ndarray, sigma: float, rng: Rng) -> np.ndarray:
    return x + x * rng.normal(0, sigma, x.shape)


def gaussian_blur(x: np.ndarray, sigma: float, rng: Rng) -> np.ndarray:
    return filters.gaussian(x, sigma)


def defocus_blur(x: np.ndarray, parameters: tuple[float, float], rng: Rng) -> np.ndarray:
    return filters.correlate(x, filters.disk(*parameters))


def glass_blur(x: np.ndarray, parameters: tuple[float, int, int], rng: Rng) -> np.ndarray:
    """Pixels take a near neighbour's value one after another. The published code means to swap the two, and in NumPy copies."""
    sigma, reach, iterations = parameters
    height, width = x.shape[:2]
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    source = list(range(height * width))
    for _ in range(iterations):
        moves = iter(rng.integers(-reach, reach, (len(rows) * len(columns), 2)).tolist())
        for row in rows:
            for column in columns:
                right, down = next(moves)
                source[row * width + column] = source[(row + down) * width + column + right]
    blurred = np.floor(filters.gaussian(x, sigma) * 255) / 255
    return filters.gaussian(blurred.reshape(-1, x.shape[2])[source].reshape(x.shape), sigma)


def motion_blur(x: np.ndarray, parameters: tuple[float, float], rng: Rng) -> np.ndarray:
    return filters.motion(x, *parameters, rng.uniform(-45, 45))


def zoom_blur(x: np.ndarray, parameters: tuple[int, float], rng: Rng) -> np.ndarray:
    """Factor 1 is among the zooms, so that the image itself counts twice, as published."""
    count, step = parameters
    return (x + sum(filters.zoomed(x, 1 + step * number) for number in range(count))) / (count + 1)


def snow(x: np.ndarray, parameters: tuple[float, ...], rng: Rng) -> np.ndarray:
    mean, deviation, zoom, threshold, radius, sigma, share = parameters
    layer = filters.zoomed(rng.normal(mean, deviation, x.shape[:2]), zoom)
    layer = np.floor(np.clip(np.where(layer < threshold, 0, layer), 0, 1) * 255) / 255
    layer = filters.motion(layer, radius, sigma, rng.uniform(-135, -45))[..., None]
    bleached = np.maximum(x, (x @ filters.GREY)[..., None] * 1.5 + 0.5)
    return share * x + (1 - share) * bleached + layer + layer[::-1, ::-1]


def frost(x: np.ndarray, parameters: tuple[float, float], rng: Rng, photographs: list[np.ndarray] | None = None) -> np.ndarray:
    """A part of one of `photographs` (float RGB in [0, 1], larger than the image) laid over; without them, of grown crystals."""
    height, width = x.shape[:2]
    if photographs:
        ice = photographs[rng.integers(len(photographs))]
        top, left = (int(rng.integers(0, have - side + 1)) for have, side in zip(ice.shape, (height, width), strict=False))
        ice = ice[top : top + height, left : left + width]
    else:
        ice = _crystals(height, width, rng)
    return parameters[0] * x + parameters[1] * ice


def _crystals(height: int, width: int, rng: Rng) -> np.ndarray:
    """Bluish white veins: the ridges of random heights at two scales."""
    size = _power_of_two(height, width)
    heights = [filters.plasma(size, decay, rng)[:height, :width] for decay in (1.6, 1.3)]
    veins = sum((1 - abs(2 * field - 1)) ** 4 for field in heights) / 2
    return (0.25 + 0.75 * veins)[..., None] * np.array([0.85, 0.93, 1.0])


def fog(x: np.ndarray, parameters: tuple[float, float], rng: Rng) -> np.ndarray:
    amount, decay = parameters
    height, width = x.shape[:2]
    clouds = filters.plasma(_power_of_two(height, width), decay, rng)[:height, :width, None]
    brightest = x.max()
    return (x + amount * clouds) * brightest / (brightest + amount)


def _power_of_two(height: int, width: int) -> int:
    return 1 << (max(height, width) - 1).bit_length()


def brightness(x: np.ndarray, amount: float, rng: Rng) -> np.ndarray:
    """HSV's value rises at the same hue and saturation: all channels grow by one factor, and black becomes grey."""
    value = x.max(axis=2, keepdims=True)
    risen = np.clip(value + amount, 0, 1)
    return np.where(value > 0, x * (risen / np.maximum(value, 1e-12)), risen)


def saturate(x: np.ndarray, parameters: tuple[float, float], rng: Rng) -> np.ndarray:
    """HSV's saturation s becomes s * a + b: distances from the largest channel grow by one factor, and greys turn reddish where b > 0."""
    value = x.max(axis=2, keepdims=True)
    distance = value - x
    saturation = distance.max(axis=2, keepdims=True) / np.maximum(value, 1e-12)
    wanted = np.clip(saturation * parameters[0] + parameters[1], 0, 1)
    # hue 0 is red
    grey = value * (1 - wanted * np.array([0.0, 1.0, 1.0]))
    return np.where(saturation > 0, value - distance * (wanted / np.maximum(saturation, 1e-12)), grey)


def contrast(x: np.ndarray, factor: float, rng: Rng) -> np.ndarray:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * factor + mean


def elastic_transform(x: np.ndarray, parameters: tuple[float, float, float], rng: Rng) -> np.ndarray:
    """A random affine map, then displacements that vary smoothly."""
    alpha, sigma, jitter = parameters
    height, width = x.shape[:2]
    centre, third = np.array([width, height]) // 2, min(height, width) // 3
    corners = np.array([centre + third, [centre[0] + third, centre[1] - third], centre - third], dtype=np.float64)
    moved = corners + rng.uniform(-jitter, jitter, corners.shape)
    # `back` takes (x, y, 1) of the result to the place in the image
    back = np.linalg.lstsq(np.column_stack([moved, np.ones(3)]), corners, rcond=None)[0]
    row, column = np.mgrid[:height, :width].astype(np.float64)
    place = np.stack([column, row, np.ones_like(row)], axis=-1) @ back
    x = _sampled(x, place[..., 1], place[..., 0], "mirror")
    shifts = [alpha * filters.gaussian(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) for _ in range(2)]
    return _sampled(x, row + shifts[1], column + shifts[0], "reflect")


def _sampled(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    return np.stack([ndimage.map_coordinates(x[..., channel], (rows, columns), order=1, mode=mode) for channel in range(x.shape[2])], axis=-1)


def pixelate(x: np.ndarray, factor: float, rng: Rng) -> np.ndarray:
    height, width = x.shape[:2]
    small = _as_image(x).resize((max(int(width * factor), 1), max(int(height * factor), 1)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg_compression(x: np.ndarray, quality: int, rng: Rng) -> np.ndarray:
    file = io.BytesIO()
    _as_image(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def _as_image(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


def spatter(x: np.ndarray, parameters: tuple[Any, ...], rng: Rng) -> np.ndarray:
    """Drops of water, or mud, where smooth noise is above a threshold."""
    mean, deviation, sigma, threshold, intensity, is_mud = parameters
    liquid = filters.gaussian(rng.normal(mean, deviation, x.shape[:2]), sigma)
    liquid = np.where(liquid < threshold, 0, liquid)
    if is_mud:
        mask = filters.gaussian((liquid > threshold).astype(np.float64), intensity)
        mask = np.where(mask < 0.8, 0, mask)[..., None]
        return x * (1 - mask) + mask * np.array([63, 42, 20]) / 255
    pixels = np.floor(np.clip(liquid, 0, 1) * 255)
    edges = filters.canny(pixels, 50, 150)
    # with no edge there is no distance to one: as far as it counts
    distance = np.minimum(ndimage.distance_transform_edt(~edges), 20) if edges.any() else np.full(edges.shape, 20.0)
    relief = filters.equalised(np.rint(_box_blur(distance)).astype(np.uint8)).astype(np.float64)
    relief = np.clip(filters.correlate(relief, np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])), 0, 255)
    drops = pixels * np.rint(_box_blur(relief))
    drops = drops / max(drops.max(), 1e-12) * intensity
    return x + drops[..., None] * np.array([175, 238, 238]) / 255


def _box_blur(image: np.ndarray) -> np.ndarray:
    return filters.correlate(image, np.full((3, 3), 1 / 9))
