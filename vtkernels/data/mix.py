"""Augmentations of whole batches: Mixup, CutMix, Cutout, random erasing, and the soft targets they ask for."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels._core.check import fail

Box = tuple[int, int, int, int]


def soft_targets(targets: Tensor, num_classes: int, smoothing: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Probabilities [B, K] of classes [B] (or of probabilities [B, K]), of which `smoothing` is spread over all K classes."""
    off = smoothing / num_classes
    on = 1.0 - smoothing + off
    if targets.dim() == 1:
        if targets.is_floating_point():
            fail("soft_targets", "targets", "be whole numbers [B], or probabilities [B, K]", targets.dtype)
        one_hot = F.one_hot(targets.long(), num_classes).bool()
        return torch.full(one_hot.shape, off, dtype=dtype, device=targets.device).masked_fill_(one_hot, on)
    check.check_tensor("soft_targets", "targets", targets, 2, "[batch, classes]")
    check.check_shape("soft_targets", "targets", targets, (targets.shape[0], num_classes), "is num_classes the model's?")
    return targets.to(dtype) * (1.0 - smoothing) + off


class Mixup:
    """Mixup and CutMix of a batch with its own reverse, by timm's definition and draws.

    Call it with images [B, C, H, W] and targets [B] or [B, K]; it gives new images and probabilities [B, K]. `views` * B images mix
    every view in the same way, so that AugMix's views of one image stay views of one mixture. With a NumPy generator's state
    and `views` 1 the results are timm's, to the bit.

    Args:
        mixup_alpha, cutmix_alpha: of the Beta distribution of the weight; 0 switches the kind off.
        cutmix_minmax: sides of the box as shares of the image, uniform between two numbers, instead of cutmix_alpha.
        prob: of mixing at all. switch_prob: of CutMix where both are on.
        mode: one draw for the "batch", for each "pair" or for each "elem" of it.
        correct_lam: the weight is the share of pixels that the box really leaves.
        label_smoothing: inside the targets.
        partner: "flip" pairs sample i with B - 1 - i; "permutation", in mode "batch", is that of the papers' own code.
        views: how many views of each image the batch holds, all first ones first.
        off_epoch: from this epoch on, images are left as they are; None mixes to the end.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: tuple[float, float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        *,
        partner: str = "flip",
        views: int = 1,
        off_epoch: int | None = None,
    ):
        if mode not in ("batch", "pair", "elem"):
            fail("Mixup", "mode", "be 'batch', 'pair' or 'elem'", repr(mode))
        if partner not in ("flip", "permutation") or (partner == "permutation" and mode != "batch"):
            fail("Mixup", "partner", "be 'flip', or 'permutation' in mode 'batch'", f"{partner!r} in mode {mode!r}")
        if cutmix_minmax is not None:
            if not 0 <= cutmix_minmax[0] < cutmix_minmax[1] <= 1:
                fail("Mixup", "cutmix_minmax", "be two shares (min, max) with 0 <= min < max <= 1", cutmix_minmax)
            # the box is drawn by its sides: the weight's distribution does not matter, and its value follows from the box
            cutmix_alpha, correct_lam = 1.0, True
        if mixup_alpha < 0 or cutmix_alpha < 0 or mixup_alpha + cutmix_alpha == 0:
            fail("Mixup", "mixup_alpha and cutmix_alpha", "not be negative, nor both 0", (mixup_alpha, cutmix_alpha))
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_minmax = mixup_alpha, cutmix_alpha, cutmix_minmax
        self.prob, self.switch_prob = check.check_share("Mixup", "prob", prob), check.check_share("Mixup", "switch_prob", switch_prob)
        self.label_smoothing = check.check_share("Mixup", "label_smoothing", label_smoothing)
        self.mode, self.correct_lam, self.num_classes, self.partner, self.views = mode, correct_lam, num_classes, partner, views
        self.off_epoch, self.enabled = off_epoch, True

    def set_epoch(self, epoch: int) -> None:
        """Loaders tell which epoch they give."""
        self.enabled = self.off_epoch is None or epoch < self.off_epoch

    def __call__(self, images: Tensor, targets: Tensor, rng: Any = None) -> tuple[Tensor, Tensor]:
        """rng: a numpy.random.RandomState; None draws from NumPy's global one, as timm does."""
        check.check_tensor("Mixup", "images", images, 4, "[views * batch, channels, height, width]")
        check.check_floating("Mixup", "images", images)
        check.check_tensor("Mixup", "targets", targets)
        batch = targets.shape[0]
        if images.shape[0] != self.views * batch:
            fail("Mixup", "images", f"be {self.views} views of {batch} targets", images.shape[0], "views is an argument of Mixup")
        if batch % 2 and self.partner == "flip":
            fail("Mixup", "the batch", "be even, so that no sample is its own partner", batch, "try drop_last=True, or partner='permutation'")
        labels = soft_targets(targets, self.num_classes, self.label_smoothing)
        rng = np.random if rng is None else rng
        if not self.enabled or not batch:
            return images, labels
        views = images.unflatten(0, (self.views, batch))
        mixed, weight, order = self._batch(views, rng) if self.mode == "batch" else self._elements(views, rng)
        return mixed.flatten(0, 1), labels * weight + labels[order] * (1.0 - weight)

    def _batch(self, views: Tensor, rng: Any) -> tuple[Tensor, float, Tensor]:
        weight, cut = self._draw(rng)
        order = torch.from_numpy(rng.permutation(views.shape[1])) if self.partner == "permutation" else torch.arange(views.shape[1] - 1, -1, -1)
        order = order.to(views.device)
        if weight == 1.0:
            return views, weight, order
        if not cut:
            return views * weight + views[:, order] * (1.0 - weight), weight, order
        box, weight = self._box(views.shape[-2:], weight, rng)
        return _pasted(views, views[:, order], box), weight, order

    def _draw(self, rng: Any) -> tuple[float, bool]:
        if rng.rand() >= self.prob:
            return 1.0, False
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cut = rng.rand() < self.switch_prob if both else self.cutmix_alpha > 0
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return float(rng.beta(alpha, alpha)), bool(cut)

    def _elements(self, views: Tensor, rng: Any) -> tuple[Tensor, Tensor, Tensor]:
        batch = views.shape[1]
        drawn = batch // 2 if self.mode == "pair" else batch
        weights, cuts = self._draw_many(drawn, rng)
        boxes: list[Box | None] = [None] * drawn
        for index in range(drawn):
            if cuts[index] and weights[index] != 1.0:
                boxes[index], weights[index] = self._box(views.shape[-2:], weights[index], rng)
        if self.mode == "pair":
            weights, boxes = np.concatenate([weights, weights[::-1]]), boxes + boxes[::-1]
        order = torch.arange(batch - 1, -1, -1, device=views.device)
        partners = views[:, order]
        weight = torch.from_numpy(weights.astype(np.float32)).to(views.device)
        # where a box was cut the image itself is not blended
        share = torch.tensor([1.0 if box else float(own) for box, own in zip(boxes, weights, strict=True)], device=views.device)
        share = share.to(views.dtype)[None, :, None, None, None]
        mixed = torch.where(share == 1.0, views, views * share + partners * (1.0 - share))
        for index, box in enumerate(boxes):
            if box:
                mixed[:, index] = _pasted(views[:, index], partners[:, index], box)
        return mixed, weight[:, None], order

    def _draw_many(self, count: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
        cuts = np.full(count, self.mixup_alpha == 0)
        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            cuts = rng.rand(count) < self.switch_prob
            drawn = np.where(cuts, rng.beta(self.cutmix_alpha, self.cutmix_alpha, count), rng.beta(self.mixup_alpha, self.mixup_alpha, count))
        else:
            alpha = self.mixup_alpha or self.cutmix_alpha
            drawn = rng.beta(alpha, alpha, count)
        return np.where(rng.rand(count) < self.prob, drawn.astype(np.float32), np.float32(1.0)), cuts

    def _box(self, size: tuple[int, int], weight: float, rng: Any) -> tuple[Box, float]:
        box = box_of_sides(size, self.cutmix_minmax, rng) if self.cutmix_minmax else cutmix_box(size, weight, rng)
        if self.correct_lam:
            top, bottom, left, right = box
            weight = 1.0 - (bottom - top) * (right - left) / float(size[0] * size[1])
        return box, weight


def cutmix_box(size: tuple[int, int], weight: float, rng: Any) -> Box:
    """(top, bottom, left, right) of a box of the share 1 - weight around a uniform centre, clipped to the image.

    Sides of an odd number of pixels are whole, as in timm since 1.0; the first code for CutMix made them one pixel shorter.
    """
    ends = []
    ratio = np.sqrt(1 - weight)
    for side in size:
        cut, centre = int(side * ratio), rng.randint(0, side)
        ends += [max(centre - cut // 2, 0), min(centre + (cut + 1) // 2, side)]
    return tuple(ends)


def box_of_sides(size: tuple[int, int], shares: tuple[float, float], rng: Any) -> Box:
    """(top, bottom, left, right) of a box inside the image, its sides uniform between two shares of the image's."""
    height, width = (rng.randint(int(side * shares[0]), int(side * shares[1])) for side in size)
    top = rng.randint(0, size[0] - height + 1)
    left = rng.randint(0, size[1] - width + 1)
    return top, top + height, left, left + width


def _pasted(images: Tensor, others: Tensor, box: Box) -> Tensor:
    top, bottom, left, right = box
    images = images.clone()
    images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return images


class Cutout:
    """Zeros in squares around uniform centres, clipped at the borders, for normalised images [B, C, H, W].

    Args:
        length: side of a square (16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN).
        holes: squares an image. prob: of cutting an image at all.
    """

    def __init__(self, length: int, holes: int = 1, prob: float = 1.0, fill: float = 0.0):
        if length < 0 or holes < 0:
            fail("Cutout", "length and holes", "not be negative", (length, holes))
        self.length, self.holes, self.prob, self.fill = length, holes, check.check_share("Cutout", "prob", prob), fill

    def __call__(self, images: Tensor, rng: Any = None) -> Tensor:
        check.check_tensor("Cutout", "images", images, 4, "[batch, channels, height, width]")
        rng = np.random if rng is None else rng
        images, half = images.clone(), self.length // 2
        height, width = images.shape[-2:]
        for image in images:
            if rng.uniform() < self.prob:
                for _ in range(self.holes):
                    y, x = (int(rng.uniform(0, side)) for side in (height, width))
                    image[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = self.fill
        return images


class RandomErasing:
    """A rectangle of each image [B, C, H, W] replaced, after normalisation.

    Args:
        prob: of erasing an image.
        area: bounds of the rectangle's share of the image; divided by the number of rectangles.
        aspect: its smallest height over width; the logarithm is uniform up to the inverse.
        mode: "const" writes zeros, "rand" one normal number a channel, "pixel" one for each value.
        count: the largest number of rectangles; an image gets 1 to that many.
        views: of so many views of each image in the batch, the first (clean) ones are left alone.
    """

    TRIES = 10

    def __init__(self, prob: float = 0.25, area: tuple[float, float] = (0.02, 1 / 3), aspect: float = 0.3, mode: str = "pixel", count: int = 1, views: int = 1):
        if mode not in ("const", "rand", "pixel"):
            fail("RandomErasing", "mode", "be 'const', 'rand' or 'pixel'", repr(mode))
        if not 0 <= area[0] <= area[1] <= 1 or aspect <= 0 or count < 1 or views < 1:
            fail("RandomErasing", "area, aspect, count and views", "be shares and positive", (area, aspect, count, views))
        self.prob = check.check_share("RandomErasing", "prob", prob)
        self.area, self.mode, self.count, self.views = area, mode, count, views
        self.log_aspect = (math.log(aspect), -math.log(aspect))

    def __call__(self, images: Tensor, rng: Any = None) -> Tensor:
        check.check_tensor("RandomErasing", "images", images, 4, "[batch, channels, height, width]")
        rng = np.random if rng is None else rng
        images = images.clone()
        first = len(images) // self.views if self.views > 1 else 0
        for image in images[first:]:
            if rng.uniform() < self.prob:
                number = self.count if self.count == 1 else rng.randint(1, self.count + 1)
                for _ in range(number):
                    self._erase(image, number, rng)
        return images

    def _erase(self, image: Tensor, number: int, rng: Any) -> None:
        channels, height, width = image.shape
        for _ in range(self.TRIES):
            area = rng.uniform(*self.area) * height * width / number
            aspect = math.exp(rng.uniform(*self.log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.randint(0, height - h + 1), rng.randint(0, width - w + 1)
                shape = {"const": (1, 1, 1), "rand": (channels, 1, 1), "pixel": (channels, h, w)}[self.mode]
                values = np.zeros(shape) if self.mode == "const" else rng.normal(size=shape)
                image[:, top : top + h, left : left + w] = torch.from_numpy(values).to(image)
                return
