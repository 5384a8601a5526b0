"""The other ways to augment an image, from what a decoder gives to what a model takes.

A peer is made for one image (a Pillow image in RGB), and then called for each augmented copy of it.
"""

from collections.abc import Callable

import numpy as np
import torch
from peers.window_attention import Unavailable
from PIL import Image, ImageOps

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, SEVERITY, RAND_CONFIG = 3, 3, "rand-m9-mstd0.5-inc1"
Peer = Callable[[Image.Image], Callable[[], object]]


def _torchvision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise Unavailable(f"torchvision cannot be imported: {error}") from error
    return torchvision


def _level() -> float:
    return np.random.uniform(low=0.1, high=SEVERITY)


def _signed(value: float) -> float:
    return -value if np.random.uniform() > 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


PUBLISHED_OPS = (
    ImageOps.autocontrast,
    ImageOps.equalize,
    lambda image: ImageOps.posterize(image, 4 - int(_level() * 4 / 10)),
    lambda image: image.rotate(_signed(int(_level() * 30 / 10)), resample=Image.Resampling.BILINEAR),
    lambda image: ImageOps.solarize(image, 256 - int(_level() * 256 / 10)),
    lambda image: _affine(image, 1, _signed(_level() * 0.3 / 10), 0, 0, 1, 0),
    lambda image: _affine(image, 1, 0, 0, _signed(_level() * 0.3 / 10), 1, 0),
    lambda image: _affine(image, 1, 0, _signed(int(_level() * image.width / 3 / 10)), 0, 1, 0),
    lambda image: _affine(image, 1, 0, 0, 0, 1, _signed(int(_level() * image.height / 3 / 10))),
)


def _published_mix(image: Image.Image, preprocess: Callable) -> torch.Tensor:
    """google-research/augmix, step for step: each chain normalised, then mixed in float."""
    weights = np.float32(np.random.dirichlet([1.0] * WIDTH))
    share = np.float32(np.random.beta(1.0, 1.0))
    mixed = torch.zeros_like(preprocess(image))
    for weight in weights:
        chain = image.copy()
        for _ in range(np.random.randint(1, 4)):
            chain = PUBLISHED_OPS[np.random.randint(len(PUBLISHED_OPS))](chain)
        mixed += weight * preprocess(chain)
    return (1 - share) * preprocess(image) + share * mixed


def _published_preprocess() -> Callable:
    transforms = _torchvision().transforms
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def published(image: Image.Image) -> Callable[[], object]:
    preprocess = _published_preprocess()
    return lambda: _published_mix(image, preprocess)


def published_triplet(image: Image.Image) -> Callable[[], object]:
    preprocess = _published_preprocess()
    return lambda: (preprocess(image), _published_mix(image, preprocess), _published_mix(image, preprocess))


def _torchvision_mix(image: Image.Image) -> tuple[Callable, Callable]:
    """On a uint8 tensor, which spares it the way from Pillow."""
    _torchvision()
    from torchvision.transforms import v2

    tensor = v2.functional.pil_to_tensor(image)
    augmix = v2.AugMix(severity=SEVERITY, mixture_width=WIDTH, all_ops=False)
    finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return lambda: finish(augmix(tensor)), lambda: finish(tensor)


def torchvision(image: Image.Image) -> Callable[[], object]:
    return _torchvision_mix(image)[0]


def torchvision_triplet(image: Image.Image) -> Callable[[], object]:
    mix, clean = _torchvision_mix(image)
    return lambda: (clean(), mix(), mix())


def timm_rand_augment(image: Image.Image) -> Callable[[], object]:
    try:
        from timm.data.auto_augment import rand_augment_transform
    except (ImportError, RuntimeError) as error:
        raise Unavailable(f"timm cannot be imported: {error}") from error
    transform = rand_augment_transform(RAND_CONFIG, {"img_mean": tuple(round(255 * value) for value in MEAN)})

    def run():
        # its posterize raises where no bit is left, with this Pillow
        try:
            return transform(image)
        except ValueError:
            return image

    return run


PEERS: dict[str, dict[str, Peer]] = {
    "augmix": {"published": published, "torchvision": torchvision},
    "triplet": {"published": published_triplet, "torchvision": torchvision_triplet},
    "randaugment": {"timm": timm_rand_augment},
}
