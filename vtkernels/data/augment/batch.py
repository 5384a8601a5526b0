"""Augmentation of whole batches, [B, C, H, W] in uint8 on any device: each sample has its own operations, and the pixels of the native code.

Samples that take the same operation are done at once. Arithmetic is in the types and in the order of the native code, whose pixels are Pillow's.
On a CPU that code itself is many times as fast, so that what begins with `Batch` hands it the samples there.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vtkernels._core.check import fail
from vtkernels.data.augment.augmix import AugMix
from vtkernels.data.augment.auto_augment import AutoAugment, RandomAutoAugment
from vtkernels.data.augment.image import AFFINE_FILTERS, ARGUMENTS, Fill, Step, check_fill, to_array
from vtkernels.data.augment.rand_augment import RandAugment
from vtkernels.data.augment.random import check_seed, sample_seed

# indices and coordinates take eight bytes for each value of an image
_MOST_VALUES = 1 << 24
Seeds = int | Sequence[int]


def apply_batch(images: Tensor, steps: Sequence[Sequence[Step]], *, filter: str = "bilinear", fill: Fill = 0) -> Tensor:
    """Each sample after its own steps, which are those of `apply`, a Gaussian blur excepted; pixels equal those of `apply`."""
    _check_images("apply_batch", images)
    if len(steps) != len(images):
        fail("apply_batch", "steps", f"be a list for each of {len(images)} samples", len(steps))
    color = torch.tensor(check_fill("apply_batch", fill)[: images.shape[1]], dtype=torch.uint8, device=images.device)
    out = images.clone()
    at_once = max(1, _MOST_VALUES // max(1, images[0].numel() if len(images) else 1))
    for turn in range(max(map(len, steps), default=0)):
        groups = defaultdict(list)
        for sample, chain in enumerate(steps):
            if turn < len(chain):
                kind, values = _kind(chain[turn], filter, *images.shape[2:])
                groups[kind].append((sample, values))
        for (name, used_filter), members in groups.items():
            for begin in range(0, len(members), at_once):
                samples, values = zip(*members[begin : begin + at_once], strict=True)
                chosen = torch.tensor(samples, device=images.device)
                numbers = torch.tensor(values, dtype=torch.float64, device=images.device)
                out[chosen] = _affine(out[chosen], numbers, used_filter, color) if name == "affine" else _OPERATIONS[name](out[chosen], numbers, color)
    return out


class BatchAugMix(AugMix):
    """`AugMix` of a batch [B, C, H, W] on its device; a sample and its seed give what `AugMix` gives, but for the rounding of float32."""

    native_on_cpu = True

    def __call__(self, images: Tensor, seeds: Seeds, view: int = 0) -> Tensor:
        """One view of each sample, float32 [B, C, H, W]. One seed stands for as many as there are samples."""
        _check_images("BatchAugMix", images)
        count, _, height, width = images.shape
        seeds = spread_seeds("BatchAugMix", seeds, count)
        if self.native_on_cpu and images.device.type == "cpu":
            out = torch.empty(images.shape, dtype=torch.float32)
            for array, seed, planes in zip(_arrays("BatchAugMix", images), seeds, out.numpy(), strict=True):
                self._native.run(array, check_seed("BatchAugMix", seed), False, [view], planes, *self.statistics)
            return out
        drawn = [self.draw(seed, height, width, view) for seed in seeds]
        chains = [one.chains[chain] for chain in range(self.width) for one in drawn]
        results = apply_batch(images.repeat(self.width, 1, 1, 1), chains, filter=self._filter, fill=self._fill).unflatten(0, (self.width, count))
        mixture = _column([one.mixture for one in drawn], images)
        weights = torch.tensor([one.weights for one in drawn], dtype=torch.float32, device=images.device).reshape(count, self.width)
        mixed = (1 - mixture) * images
        for chain in range(self.width):
            mixed += mixture * weights[:, chain, None, None, None] * results[chain]
        return self._normalized(mixed)

    def views(self, images: Tensor, seeds: Seeds, num_views: int = 3) -> Tensor:
        """The clean images, then `num_views - 1` mixes of each, [num_views * B, C, H, W]: all first views before all second ones."""
        if num_views < 1:
            fail("BatchAugMix", "num_views", "be at least 1", num_views, "try 3")
        _check_images("BatchAugMix", images)
        return torch.cat([self._normalized(images.float()), *(self(images, seeds, view) for view in range(num_views - 1))])

    def _normalized(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values[: images.shape[1]], dtype=torch.float32, device=images.device)[:, None, None] for values in self.statistics)
        return images.mul_(1 / (255 * std)).add_(-mean / std)


class _Batches:
    """A policy's own draws, for each sample of a uint8 batch [B, C, H, W] on its device. One seed stands for as many as there are samples."""

    native_on_cpu = True

    def __call__(self, images: Tensor, seeds: Seeds) -> Tensor:
        what = type(self).__name__
        _check_images(what, images)
        seeds = spread_seeds(what, seeds, len(images))
        if self.native_on_cpu and images.device.type == "cpu":
            results = [torch.from_numpy(super(_Batches, self).__call__(array, seed)) for array, seed in zip(_arrays(what, images), seeds, strict=True)]
            return torch.stack(results).permute(0, 3, 1, 2).contiguous() if results else images.clone()
        steps = [self.draw(seed, *images.shape[2:]) for seed in seeds]
        return apply_batch(images, steps, fill=self.fill)


class BatchRandAugment(_Batches, RandAugment):
    __doc__ = _Batches.__doc__


class BatchAutoAugment(_Batches, AutoAugment):
    __doc__ = _Batches.__doc__


class BatchRandomAutoAugment(_Batches, RandomAutoAugment):
    __doc__ = _Batches.__doc__


def spread_seeds(what: str, seeds: Seeds, count: int) -> list[int]:
    """A seed for each sample: those given, or as many as needed that follow from one."""
    if hasattr(seeds, "__index__") and not getattr(seeds, "ndim", 0):
        return [sample_seed(check_seed(what, seeds), index) for index in range(count)]
    seeds = seeds.tolist() if hasattr(seeds, "tolist") else list(seeds)
    if len(seeds) != count:
        fail(what, "seeds", f"be one, or one for each of {count} samples", len(seeds))
    return seeds


def _check_images(what: str, images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        fail(what, "images", "be a uint8 tensor", got, "augment before normalising: leave statistics out of create_loader", TypeError)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[1:]:
        fail(what, "images", "have shape [B, 3, H, W] or [B, 1, H, W]", list(images.shape))


def _kind(step: Step, filter: str, height: int, width: int) -> tuple[tuple[str, str], list[float]]:
    """What is done at once with it, and the numbers; all geometry is one affine operation."""
    name, *values = step
    if values and isinstance(values[-1], str):
        filter = values.pop()
    if name not in _OPERATIONS and name not in _MATRICES:
        fail("apply_batch", "an operation", f"be one of {', '.join([*_OPERATIONS, *_MATRICES])}", repr(name), "try apply, image by image")
    least, most = ARGUMENTS[name]
    if not least <= len(values) <= most or not all(math.isfinite(v) and abs(v) < 1e9 for v in values):
        fail("apply_batch", name, f"have {least if least == most else f'{least} or {most}'} finite numbers", values)
    if name == "posterize" and values[0] not in range(9):
        fail("apply_batch", "posterize", "keep 0 to 8 bits", values[0], "try int(bits)")
    if name == "solarize_add" and len(values) == 1:
        values.append(128)
    if name not in _MATRICES:
        return (name, ""), values
    if filter not in AFFINE_FILTERS:
        fail("apply_batch", "filter", f"be one of {', '.join(AFFINE_FILTERS)}", repr(filter))
    return ("affine", filter), _MATRICES[name](height, width, *values)


def _arrays(what: str, images: Tensor) -> list[np.ndarray]:
    """[H, W, C] each, as the native code takes them."""
    return [to_array(what, array) for array in images.permute(0, 2, 3, 1).contiguous().numpy()]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None, None]


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """`tables` [n, C or 1, 256]."""
    pixels = images.flatten(2)
    return tables.to(torch.uint8).expand(*pixels.shape[:2], 256).gather(2, pixels.long()).view_as(images)


def _bytes(device: torch.device) -> Tensor:
    return torch.arange(256, device=device)


def _autocontrast(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    low, high = (edge(images.flatten(2), 2).double()[..., None] for edge in (torch.amin, torch.amax))
    flat = high <= low
    # of a Python number, torch would multiply by the rounded inverse
    scale = torch.where(flat, 1.0, torch.full_like(low, 255.0) / (high - low))
    offset = torch.where(flat, 0.0, -low * scale)
    return _look_up(images, (_bytes(images.device) * scale + offset).clamp(0, 255))


def _equalize(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    rows = torch.arange(count * channels, device=images.device)[:, None] * 256
    counts = torch.bincount((images.reshape(count * channels, -1) + rows).flatten(), minlength=256 * count * channels).view(count, channels, 256)
    brightest = images.flatten(2).amax(2, keepdim=True).long()
    step = (height * width - counts.gather(2, brightest)) // 255
    before = counts.cumsum(2) - counts + step // 2
    tables = torch.where(step > 0, (before // step.clamp(min=1)).clamp(max=255), _bytes(images.device))
    return _look_up(images, tables)


def _invert(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    return 255 - images


def _posterize(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    keep = (0xFF00 >> values.long()) & 255
    return images & keep.to(torch.uint8)[..., None, None]


def _threshold(values: Tensor) -> Tensor:
    return values.ceil().clamp(-1, 256).to(torch.int16)[:, None, None, None]


def _solarize(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    return torch.where(images < _threshold(values[:, 0]), images, 255 - images)


def _solarize_add(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    added = images + values[:, 0].clamp(-255, 255).to(torch.int16)[:, None, None, None]
    return torch.where(images < _threshold(values[:, 1]), added.clamp(0, 255).to(torch.uint8), images)


def _blend(degenerate: Tensor | int, images: Tensor, factors: Tensor) -> Tensor:
    difference = images.float() - degenerate
    return (difference.mul_(factors.float()[..., None, None]).add_(degenerate)).clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _color(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(_luma(images), images, values)


def _contrast(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    mean = _luma(images).sum((1, 2, 3), keepdim=True).double() / (images.shape[2] * images.shape[3])
    return _blend((mean + 0.5).floor().int(), images, values)


def _brightness(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    return _blend(0, images, values)


def _sharpness(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    height, width = images.shape[2:]
    if height < 3 or width < 3:
        return images
    pixels = images.short()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    inner = pixels[:, :, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner + 6) // 13
    out = images.clone()
    out[:, :, 1:-1, 1:-1] = _blend(smooth, inner, values)
    return out


def _cutout(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    left, top, right, bottom = (side[:, None, None] for side in values.trunc().unbind(1))
    y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
    inside = ((y >= top[..., 0])[..., None] & (y < bottom[..., 0])[..., None]) & ((x >= left) & (x < right))
    return torch.where(inside[:, None], fill[:, None, None], images)


def _flip(images: Tensor, values: Tensor, fill: Tensor) -> Tensor:
    return images.flip(3)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "cutout": _cutout,
    "flip": _flip,
}


def _rotation(height: int, width: int, degrees: float) -> list[float]:
    """About the centre, sine and cosine rounded as Pillow does."""
    radians = -math.radians(degrees % 360.0)
    cosine, sine, x, y = round(math.cos(radians), 15), round(math.sin(radians), 15), width / 2, height / 2
    minus_sine = round(-math.sin(radians), 15)
    return [cosine, sine, cosine * -x + sine * -y + x, minus_sine, cosine, minus_sine * -x + cosine * -y + y]


_MATRICES: dict[str, Callable[..., list[float]]] = {
    "rotate": _rotation,
    "shear_x": lambda height, width, shear: [1, shear, 0, 0, 1, 0],
    "shear_y": lambda height, width, shear: [1, 0, 0, shear, 1, 0],
    "translate_x": lambda height, width, pixels: [1, 0, pixels, 0, 1, 0],
    "translate_y": lambda height, width, pixels: [1, 0, 0, 0, 1, pixels],
    "affine": lambda height, width, *matrix: list(matrix),
}


def _affine(images: Tensor, matrices: Tensor, filter: str, fill: Tensor) -> Tensor:
    height, width = images.shape[2:]
    a, b, c, d, e, f = (number[:, None, None] for number in matrices.unbind(1))
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] + 0.5
    x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    if filter == "nearest":
        columns, rows = _nearest(matrices, from_x, from_y)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        sampled = _pick(images, columns, rows)
    else:
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        from_x, from_y = from_x - 0.5, from_y - 0.5
        column, row = from_x.floor(), from_y.floor()
        # a coordinate far outside has no number in 64 bits, and no pixel either
        columns, rows = column.clamp(-2, width + 1).long(), row.clamp(-2, height + 1).long()
        sampled = _SMOOTH[filter](images, columns, rows, (from_x - column)[:, None], (from_y - row)[:, None])
    return torch.where(inside[:, None], sampled, fill[:, None, None])


def _pick(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Pixels [n, C, H, W] at positions [n, H, W]; the edges repeat."""
    height, width = images.shape[2:]
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return images.flatten(2).gather(2, places.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def _nearest(matrices: Tensor, from_x: Tensor, from_y: Tensor) -> tuple[Tensor, Tensor]:
    """In 16 fractional bits where both coordinates mix, as Pillow has it."""
    height, width = from_x.shape[1:]
    y, x = torch.arange(height, device=matrices.device)[:, None], torch.arange(width, device=matrices.device)

    def places(numbers: Tensor, exact: Tensor) -> Tensor:
        along_x, along_y, start = numbers.unbind(1)
        shifted = torch.stack([along_x, along_y, start + along_x * 0.5 + along_y * 0.5])
        # what does not fit is outside anyway
        in_x, in_y, first = ((shifted * 65536 + 0.5).floor().clamp(-(2**48), 2**48).long())[..., None, None]
        mixes = ((matrices[:, 1] != 0) | (matrices[:, 3] != 0))[:, None, None]
        return torch.where(mixes, (first + y * in_y + x * in_x) >> 16, exact.floor().clamp(-1, 2**31).long())

    return places(matrices[:, :3], from_x), places(matrices[:, 3:], from_y)


def _bilinear(images: Tensor, columns: Tensor, rows: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    def line(rows: Tensor) -> Tensor:
        left, right = (_pick(images, columns + i, rows).double() for i in (0, 1))
        return left + (right - left) * dx

    above, below = line(rows), line(rows + 1)
    return (above + (below - above) * dy).to(torch.uint8)


def _cubic(a: Tensor, b: Tensor, c: Tensor, d: Tensor, t: Tensor) -> Tensor:
    return b + t * ((-a + c) + t * ((2 * (a - b) + c - d) + t * (-a + b - c + d)))


def _bicubic(images: Tensor, columns: Tensor, rows: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    def line(rows: Tensor) -> Tensor:
        return _cubic(*(_pick(images, columns + i, rows).double() for i in (-1, 0, 1, 2)), dx)

    return _cubic(*(line(rows + i) for i in (-1, 0, 1, 2)), dy).clamp(0, 255).to(torch.uint8)


_SMOOTH = {"bilinear": _bilinear, "bicubic": _bicubic}
