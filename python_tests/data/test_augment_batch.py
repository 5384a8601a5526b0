"""Augmentation of tensors on a device against the native code, which is tested against Pillow."""

import random

import numpy as np
import pytest
import torch
from images import require_imgops

from vtkernels.data import augment, create_dataset, create_loader
from vtkernels.data.augment import AugMix, AutoAugment, BatchAugMix, BatchAutoAugment, BatchRandAugment, BatchRandomAutoAugment, RandAugment, RandomAutoAugment

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
SHAPES = ((6, 3, 32, 32), (5, 3, 17, 40), (4, 1, 9, 6), (3, 3, 2, 5), (2, 3, 1, 1))


@pytest.fixture(autouse=True)
def extension():
    require_imgops()


# the same code for tensors on a CPU as on other devices, and the native code in its place
WAYS = [("cpu", False), ("cpu", True), pytest.param(("cuda", False), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]


def batch(shape, seed=0, device="cpu"):
    """Noise, one value, few values, ramps, black and white."""
    rng = np.random.default_rng(seed)
    samples = [rng.integers(0, 256, shape[1:]), np.full(shape[1:], 77), rng.integers(100, 130, shape[1:])]
    samples += [np.arange(np.prod(shape[1:])).reshape(shape[1:]) % 256, rng.integers(0, 2, shape[1:]) * 255]
    return torch.from_numpy(np.stack([samples[(i + seed) % 5] for i in range(shape[0])]).astype(np.uint8)).to(device)


def images_of(images):
    """As the native code takes them."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return [array if array.shape[2] == 3 else array[..., 0] for array in arrays]


def assert_same_pixels(result, images, steps, **settings):
    assert result.dtype == torch.uint8 and result.shape == images.shape
    expected = [augment.apply(image, chain, **settings) if chain else image for image, chain in zip(images_of(images), steps, strict=True)]
    for sample, (got, truth) in enumerate(zip(images_of(result), expected, strict=True)):
        assert (got == truth).all(), f"{np.count_nonzero(got != truth)} pixels of {truth.shape} differ after {steps[sample]}"


ARGUMENTS = {
    "autocontrast": lambda rng: (),
    "equalize": lambda rng: (),
    "invert": lambda rng: (),
    "flip": lambda rng: (),
    "posterize": lambda rng: (rng.randrange(9),),
    "solarize": lambda rng: (rng.choice([0, 256, 300, -5, rng.uniform(0, 256)]),),
    "solarize_add": lambda rng: (rng.randrange(-130, 130), *rng.choice([(), (rng.randrange(256),)])),
    "cutout": lambda rng: (rng.randrange(-9, 30), rng.randrange(-9, 30), rng.randrange(40), rng.uniform(0, 40)),
    "rotate": lambda rng: (rng.choice([0, 90, 180, -90, 270, 30, rng.uniform(-400, 400)]),),
    "shear_x": lambda rng: (rng.choice([0, 0.3, rng.uniform(-2, 2)]),),
    "shear_y": lambda rng: (rng.choice([0, 0.3, rng.uniform(-2, 2)]),),
    "translate_x": lambda rng: (rng.choice([0, 3, -100, 1.5, rng.uniform(-20, 20)]),),
    "translate_y": lambda rng: (rng.choice([0, 3, -100, 1.5, rng.uniform(-20, 20)]),),
    "affine": lambda rng: tuple(rng.choice([0.0, 1.0, rng.uniform(-2, 2), rng.uniform(-9, 9)]) for _ in range(6)),
}
ARGUMENTS |= dict.fromkeys(("color", "contrast", "brightness", "sharpness"), lambda rng: (rng.choice([0, 0.1, 1, 1.9, rng.uniform(-2, 4)]),))
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "affine")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_each_operation_has_the_pixels_of_the_native_code(name, device):
    rng = random.Random(name)
    for seed in range(4):
        for shape in SHAPES:
            images = batch(shape, seed, device)
            filters = ("nearest", "bilinear", "bicubic") if name in GEOMETRIC else (None,)
            for filter in filters:
                steps = [[(name, *ARGUMENTS[name](rng), *([filter] if filter else []))] for _ in range(shape[0])]
                assert_same_pixels(augment.apply_batch(images, steps, fill=(9, 80, 200)), images, steps, fill=(9, 80, 200))


@pytest.mark.parametrize("device", DEVICES)
def test_samples_have_their_own_operations_and_number_of_them(device):
    rng, images = random.Random(1), batch((12, 3, 24, 19), device=device)
    before = images.clone()
    steps = [[(name, *ARGUMENTS[name](rng)) for name in rng.choices(list(ARGUMENTS), k=sample % 5)] for sample in range(12)]
    assert_same_pixels(augment.apply_batch(images, steps, filter="bicubic", fill=3), images, steps, filter="bicubic", fill=3)
    assert torch.equal(images, before)
    strided = images.permute(0, 1, 3, 2)
    assert_same_pixels(augment.apply_batch(strided, steps), strided, steps)


def test_large_groups_are_done_in_parts(monkeypatch):
    images = batch((7, 3, 8, 8))
    steps = [[("rotate", 10 * sample), ("equalize",)] for sample in range(7)]
    whole = augment.apply_batch(images, steps)
    monkeypatch.setattr("vtkernels.data.augment.batch._MOST_VALUES", 400)
    assert torch.equal(augment.apply_batch(images, steps), whole)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"ops": "all", "severity": 10, "fill": 40}, {"width": 1, "depth": 4, "filter": "bicubic", "mean": 0.5, "std": 0.5}])
def test_augmix_is_the_native_one(settings, shape, way):
    images, seeds = batch(shape, device=way[0]), list(range(50, 50 + shape[0]))
    augmix, batched = AugMix(**settings), BatchAugMix(**settings)
    batched.native_on_cpu = way[1]
    views = batched.views(images, seeds)
    assert views.dtype == torch.float32 and views.device == images.device
    expected = np.stack([augmix.views(image, seed) for image, seed in zip(images_of(images), seeds, strict=True)], axis=1)
    # values of some units, a few roundings of float32 apart: far below the 1/255 of a level
    np.testing.assert_allclose(views.unflatten(0, (3, -1)).cpu().numpy(), expected, rtol=0, atol=4e-6)
    assert torch.equal(batched(images, seeds), views[shape[0] : 2 * shape[0]])
    assert torch.equal(batched(images[1:], seeds[1:]), views[shape[0] + 1 : 2 * shape[0]]), "a sample's neighbours change nothing"


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "single, batched",
    [
        (RandAugment.from_config("rand-m9-mstd0.5-inc1-p1"), BatchRandAugment.from_config("rand-m9-mstd0.5-inc1-p1")),
        (RandAugment(filter="nearest"), BatchRandAugment(filter="nearest")),
        (AutoAugment("imagenet_v0"), BatchAutoAugment("imagenet_v0")),
        (AutoAugment("cifar_full"), BatchAutoAugment("cifar_full")),
        (RandomAutoAugment(), BatchRandomAutoAugment()),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_policies_are_the_native_ones(single, batched, way, monkeypatch):
    monkeypatch.setattr(batched, "native_on_cpu", way[1])
    images = batch((40, 3, 33, 20), device=way[0])
    result = batched(images, np.arange(40))
    for sample, image in enumerate(images_of(images)):
        assert (images_of(result[sample : sample + 1])[0] == single(image, sample)).all()


def test_the_loader_augments_whole_batches():
    dataset, augmix = create_dataset("shapes", count=12, size=16), BatchAugMix(mean=0.5, std=0.5)
    loaders = [create_loader(dataset, 4, train=True, augment=augmix.views, seed=seed, workers=workers) for seed, workers in ((3, 0), (3, 1), (4, 0))]
    first, workers, other = (torch.stack([images for images, _ in loader]) for loader in loaders)
    assert first.shape == (3, 12, 3, 16, 16) and torch.equal(first, workers) and not torch.equal(first, other)
    again = loaders[0]
    again.load_state_dict({**again.state_dict(), "epoch": 0, "batch": 2})
    assert torch.equal(next(iter(again))[0], first[2])
    policy, statistics = BatchRandAugment(prob=1.0), ((0.5,) * 3, (0.25,) * 3)
    (images, _), (plain, _) = (next(iter(create_loader(dataset, 4, augment=augment, statistics=statistics))) for augment in (policy, None))
    assert images.dtype == torch.float32 and images.abs().max() <= 2 and not torch.equal(images, plain)


def test_one_seed_is_spread_over_the_samples():
    images = batch((1, 3, 16, 16)).repeat(6, 1, 1, 1)
    once, again = BatchAugMix()(images, 5), BatchAugMix()(images, torch.tensor(5))
    assert torch.equal(once, again) and len(once.unique(dim=0)) == 6
    assert torch.equal(once, BatchAugMix()(images, [augment.sample_seed(5, index) for index in range(6)]))


def test_empty_batches():
    images = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert augment.apply_batch(images, []).shape == images.shape
    assert BatchAugMix().views(images, 0).shape == images.shape
    assert BatchRandAugment()(images, []).shape == images.shape


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: augment.apply_batch(IMAGES.float(), [[], []]), "uint8 tensor, got torch.float32"),
        (lambda: augment.apply_batch(IMAGES[0], [[], []]), r"\[B, 3, H, W\]"),
        (lambda: augment.apply_batch(IMAGES.permute(0, 2, 3, 1), [[], []]), r"got \[2, 4, 4, 3\]"),
        (lambda: augment.apply_batch(IMAGES, [[]]), "each of 2 samples, got 1"),
        (lambda: augment.apply_batch(IMAGES, [[("gaussian_blur", 1)], []]), "try apply, image by image"),
        (lambda: augment.apply_batch(IMAGES, [[("rotate",)], []]), "have 1 finite"),
        (lambda: augment.apply_batch(IMAGES, [[("rotate", float("nan"))], []]), "have 1 finite"),
        (lambda: augment.apply_batch(IMAGES, [[("posterize", 9)], []]), "0 to 8 bits"),
        (lambda: augment.apply_batch(IMAGES, [[("rotate", 3, "box")], []]), "bicubic, got 'box'"),
        (lambda: BatchAugMix()(IMAGES, [1, 2, 3]), "each of 2 samples, got 3"),
        (lambda: BatchAugMix()(IMAGES, [1, 2.5]), "seed must be an int"),
        (lambda: BatchAugMix().views(IMAGES, 1, num_views=0), "at least 1"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
