"""Drawn shapes on a noisy ground, with their boxes and masks: any size and number, and never a file."""

from collections.abc import Callable

import numpy as np

from vtkernels._core.check import fail, pair
from vtkernels.data.datasets._base import ImageDataset, Statistics, checked_split
from vtkernels.data.datasets._registry import register

# each is inside where true; y and x run from -1 to 1 over the shape's box
_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disk": lambda y, x: y**2 + x**2 <= 1,
    "square": lambda y, x: np.maximum(abs(y), abs(x)) <= 0.9,
    "triangle": lambda y, x: (abs(x) <= (y + 1) / 2) & (y <= 1),
    "ring": lambda y, x: (y**2 + x**2 <= 1) & (y**2 + x**2 >= 0.3),
    "cross": lambda y, x: (np.minimum(abs(y), abs(x)) <= 0.3) & (np.maximum(abs(y), abs(x)) <= 1),
    "diamond": lambda y, x: abs(y) + abs(x) <= 1,
    "bars": lambda y, x: (np.maximum(abs(y), abs(x)) <= 1) & (abs(abs(y) - 0.7) <= 0.3),
    "frame": lambda y, x: (np.maximum(abs(y), abs(x)) <= 0.95) & (np.maximum(abs(y), abs(x)) >= 0.55),
}
_SPLITS = ("train", "val", "test")
_TASKS = ("classification", "detection", "segmentation")


@register("shapes")
def shapes(name: str, split: str, **options) -> "Shapes":
    checked_split(name, split, _SPLITS)
    return Shapes(split, **options)


class Shapes(ImageDataset):
    """Sample i depends on (seed, split, i) and the sizes only, however many samples there are.

    Args:
        count: number of samples.
        size: of the image, a number or (height, width).
        objects: the largest number of shapes in an image; the last drawn is never covered and gives the image its class.
        classes: how many kinds of shapes there are, up to 8.
        task: what the target is. "classification": the class; "detection": {"boxes" float32 [n, 4] as x0 y0 x1 y1, "labels" int64 [n],
            "masks" bool [n, H, W]}; "segmentation": uint8 [H, W], 0 the ground, which then is the first of the classes, and 1 + class elsewhere.
        noise: standard deviation of the ground's grain, in grey levels.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        count: int = 1000,
        size: int | tuple[int, int] = 32,
        objects: int = 1,
        classes: int = 8,
        task: str = "classification",
        noise: float = 12.0,
        seed: int = 0,
    ):
        self.size = pair("shapes", "size", size)
        if not 2 <= classes <= len(_INSIDE):
            fail("shapes", "classes", f"lie in 2..{len(_INSIDE)}", classes)
        if task not in _TASKS:
            fail("shapes", "task", f"be one of {', '.join(_TASKS)}", repr(task))
        if count < 0 or objects < 1 or min(self.size) < 8:
            fail("shapes", "count, objects and size", "be at least 0, 1 and 8", (count, objects, self.size))
        self.task, self.objects, self.noise, self.seed = task, objects, noise, (seed, _SPLITS.index(split))
        self.kinds = list(_INSIDE)[:classes]
        ground = ["ground"] if task == "segmentation" else []
        super().__init__([*ground, *self.kinds], np.arange(count) % classes + len(ground), Statistics((0.5,) * 3, (0.25,) * 3))

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | np.ndarray | dict[str, np.ndarray]]:
        index = self.position(index)
        image, labels, masks = self._draw(index)
        if self.task == "detection":
            return image, {"boxes": _boxes(masks), "labels": labels, "masks": masks}
        if self.task == "segmentation":
            return image, (masks * (1 + labels)[:, None, None]).max(axis=0).astype(np.uint8)
        return image, int(self.targets[index])

    def image(self, index: int) -> np.ndarray:
        return self._draw(index)[0]

    def target(self, index: int) -> int | np.ndarray | dict[str, np.ndarray]:
        return self[index][1]

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image, the classes of its visible shapes, and where each is visible."""
        rng, (height, width) = np.random.default_rng([*self.seed, index]), self.size
        y, x = np.mgrid[:height, :width]
        ground, slope = rng.uniform(60, 200, 3), rng.uniform(-40, 40, (2, 3))
        image = ground + (y / height - 0.5)[..., None] * slope[0] + (x / width - 0.5)[..., None] * slope[1]
        image += rng.normal(0, self.noise, image.shape)
        labels, owner = [], np.full((height, width), -1)
        drawn = []
        number = int(rng.integers(1, self.objects + 1))
        for place in range(number):
            label = index % len(self.kinds) if place == number - 1 else int(rng.integers(len(self.kinds)))
            radius = rng.uniform(0.2, 0.4) * min(height, width) * (1 if self.objects == 1 else 0.8)
            centre_y, centre_x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
            inside = _INSIDE[self.kinds[label]]((y + 0.5 - centre_y) / radius, (x + 0.5 - centre_x) / radius)
            # at least 60 grey levels away from the ground, so that every shape can be seen
            colour = (ground + rng.choice([-1, 1], 3) * rng.uniform(60, 120, 3)) % 256
            image[inside] = colour + rng.normal(0, self.noise / 2, (int(inside.sum()), 3))
            owner[inside] = place
            labels.append(label)
            drawn.append(int(inside.sum()))
        # a shape that others cover by more than half is left out of the answers
        kept = [place for place in range(number) if 2 * (owner == place).sum() > drawn[place] or place == number - 1]
        masks = np.stack([owner == place for place in kept])
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), np.array([labels[place] for place in kept], dtype=np.int64), masks


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes [n, 4]: x0, y0 inside, x1, y1 one past the last pixel."""
    boxes = np.empty((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
