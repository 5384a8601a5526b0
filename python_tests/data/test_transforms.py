"""Transforms of images against Pillow, torchvision and timm, and what the factories make of them."""

import pickle
import random

import numpy as np
import pytest
import torch
from images import pillow, random_image, require_imgops
from optional import peer

from vtkernels.data import augment, create_dataset, create_loader, eval_transform, train_transform
from vtkernels.data.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Resize,
    ThreeAugment,
    ToFloat,
)

SEEDS = range(40)


@pytest.fixture(autouse=True)
def extension():
    require_imgops()


def picture(height=60, width=47, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def functional():
    return peer("torchvision.transforms.functional")


def as_pillow(array):
    return peer("PIL.Image").fromarray(array)


def test_resized_crops_are_torchvisions_of_the_same_box():
    modes = peer("torchvision.transforms").InterpolationMode
    crop = RandomResizedCrop((24, 20), filter=("bilinear", "bicubic"))
    for seed in SEEDS:
        array = picture(seed=seed)
        *box, filter = crop.draw(seed, 60, 47)
        truth = functional().resized_crop(as_pillow(array), *box, [24, 20], modes(filter))
        assert (crop(array, seed) == np.asarray(truth)).all()


def test_boxes_are_drawn_as_published():
    crop = RandomResizedCrop(8, scale=(0.2, 0.6), ratio=(0.5, 2.0))
    boxes = np.array([crop.draw(seed, 400, 500)[:4] for seed in range(3000)], dtype=float)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (top + height <= 400).all() and (left >= 0).all() and (left + width <= 500).all()
    share, ratio = height * width / 200000, np.log(width / height)
    assert share.min() >= 0.198 and share.max() <= 0.602
    # all boxes of these bounds fit, but for the tallest
    assert share.mean() == pytest.approx(0.39, abs=0.02)
    assert ratio.min() >= np.log(0.5) - 0.02 and ratio.max() <= np.log(2) + 0.02
    free = height < 390
    assert (top[free] / (400 - height[free])).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shape", [(10, 300), (300, 10), (1, 40)])
def test_boxes_of_long_images_are_torchvisions(shape):
    """No box of nearly the whole area has a ratio within bounds."""
    crop = RandomResizedCrop(8, scale=(0.9, 1.0))
    truth = peer("torchvision.transforms").RandomResizedCrop.get_params(torch.empty(3, *shape), [0.9, 1.0], [3 / 4, 4 / 3])
    assert crop.draw(0, *shape)[:4] == truth


def test_crops_with_a_margin():
    array = picture(32, 32)
    for mode, settings in (("constant", {"fill": 7}), ("reflect", {})):
        crop, seen = RandomCrop(32, 4, mode=mode, **settings), set()
        truth = np.asarray(functional().pad(as_pillow(array), 4, settings.get("fill", 0) if mode == "constant" else 0, mode))
        for seed in range(300):
            top, left, height, width = crop.draw(seed, 40, 40)
            seen |= {(top, "top"), (left, "left")}
            assert (crop(array, seed) == truth[top : top + height, left : left + width]).all()
        assert seen == {(place, side) for place in range(9) for side in ("top", "left")}
    assert RandomCrop((20, 30))(random_image(random.Random(0), color=False).repeat(40, 0).repeat(40, 1), 3).shape == (20, 30)


def test_flips():
    array = picture()
    flipped = [seed for seed in range(1000) if (RandomFlip()(array, seed) == array[:, ::-1]).all()]
    assert len(flipped) == pytest.approx(500, abs=70)
    assert all((RandomFlip()(array, seed) == array).all() for seed in range(20) if seed not in flipped)
    assert (RandomFlip(0.0)(array, 1) == array).all() and (RandomFlip(1.0)(array, 1) == array[:, ::-1]).all()


@pytest.mark.parametrize("shape", [(60, 47), (33, 90), (31, 31), (7, 200)])
@pytest.mark.parametrize("size, crop_pct", [(32, 0.875), (24, 0.9), (16, 1.0)])
def test_evaluation_is_timms(shape, size, crop_pct):
    timm = peer("timm.data")
    array = picture(*shape)
    ours = eval_transform(size, crop_pct)(array, 0)
    truth = timm.create_transform((3, size, size), is_training=False, interpolation="bicubic", crop_pct=crop_pct)(as_pillow(array)).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-6)


def test_evaluation_of_other_shapes():
    array = picture(50, 80)
    assert eval_transform((20, 60), 0.9)(array, 0).shape == (3, 20, 60)
    squashed = eval_transform(24, 1.0, squash=True, mean=0.0, std=1.0)(array, 0)
    truth = np.asarray(as_pillow(array).resize((24, 24), peer("PIL.Image").Resampling.BICUBIC))
    np.testing.assert_array_equal(np.rint(squashed * 255).astype(np.uint8), truth.transpose(2, 0, 1))
    assert Resize((20, 60), cover=True).target(50, 80) == (37, 60)
    assert Resize(20).target(50, 81) == (20, 32) and Resize((20, 60)).target(50, 80) == (20, 60)


def test_colours_are_torchvisions():
    jitter, orders = ColorJitter(0.4, 0.5, 0.6, 0.2), set()
    names = {"brightness": "brightness", "contrast": "contrast", "color": "saturation", "hue": "hue"}
    bounds = {"brightness": (0.6, 1.4), "contrast": (0.5, 1.5), "color": (0.4, 1.6), "hue": (-0.2, 0.2)}
    for seed in range(200):
        steps = jitter.draw(seed)
        orders.add(tuple(name for name, _ in steps))
        assert all(bounds[name][0] <= value <= bounds[name][1] for name, value in steps)
        if seed < 30:
            image = as_pillow(picture(seed=seed))
            truth = image
            for name, value in steps:
                truth = getattr(functional(), f"adjust_{names[name]}")(truth, value)
            assert (jitter(image, seed) == np.asarray(truth)).all()
    assert len(orders) == 24
    assert (ColorJitter()(picture(), 3) == picture()).all() and ColorJitter(2.0).strengths["brightness"] == 2.0


def test_three_augment_is_deits():
    three, firsts = ThreeAugment(), []
    for seed in range(300):
        first, *rest = three.draw(seed)
        firsts.append(first[0])
        assert sorted(name for name, _ in rest) == ["brightness", "color", "contrast"] and all(0.7 <= value <= 1.3 for _, value in rest)
        assert first[0] != "gaussian_blur" or 0.1 <= first[1] <= 2
        if seed < 20:
            array = picture(seed=seed)
            assert (three(array, seed) == pillow(array, [first, *rest])).all()
            if first[0] == "color":
                assert (augment.apply(array, [first]) == np.asarray(as_pillow(array).convert("L").convert("RGB"))).all()
    assert min(firsts.count(name) for name in ("color", "solarize", "gaussian_blur")) > 70


def test_floats():
    array = picture()
    np.testing.assert_allclose(ToFloat()(array), functional().to_tensor(as_pillow(array)).numpy(), rtol=0, atol=1e-7)
    assert (Normalize()(array) == augment.normalize(array)).all()


def test_steps_of_a_pipeline_draw_apart():
    drawn = []
    steps = Compose(*[lambda image, seed: drawn.append(seed) or image] * 3)
    steps(0, seed=4), steps(0, seed=4), steps(0, seed=5)
    assert drawn[:3] == drawn[3:6] and len(set(drawn)) == 6


RECIPES = (
    {},
    {"padding": 2, "augment": "cifar"},
    {"augment": "rand-m9-mstd0.5-inc1", "filter": ("bilinear", "bicubic")},
    {"augment": "three", "jitter": 0.3},
    {"augment": "augmix", "jitter": 0.1},
)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_training_gives_what_the_loader_takes(recipe):
    transform = pickle.loads(pickle.dumps(train_transform(24, **recipe)))
    dataset = create_dataset("shapes", count=8, size=32)
    first, second = (next(iter(create_loader(dataset, 8, train=True, transform=transform, seed=1)))[0] for _ in range(2))
    assert first.shape == (8, 3, 24, 24) and first.dtype == torch.float32 and torch.equal(first, second)
    assert not torch.equal(first, next(iter(create_loader(dataset, 8, train=True, transform=transform, seed=2)))[0])


def test_views_of_augmix():
    transform = train_transform(16, augment="augmix", views=3, mean=0.5, std=0.5)
    images, targets = next(iter(create_loader(create_dataset("shapes", count=4, size=20), 4, transform=transform)))
    assert images.shape == (12, 3, 16, 16) and len(targets) == 4
    assert images[:4].abs().max() <= 1 and not torch.equal(images[4:8], images[8:])
    assert train_transform(16, augment="rand-m9", mean=0.5).transforms[2].fill == (128, 128, 128)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: RandomResizedCrop(0), "size must be positive"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.1)), "in order"),
        (lambda: RandomResizedCrop(8, filter="cubic"), "bicubic, lanczos, got 'cubic'"),
        (lambda: RandomCrop(8, padding=-1), "padding"),
        (lambda: RandomCrop(8, mode="edge"), "constant or reflect"),
        (lambda: RandomCrop(90)(picture(), 0), r"at least \[90, 90\]"),
        (lambda: CenterCrop(90)(picture()), r"at least \[90, 90\]"),
        (lambda: RandomFlip(2), "from 0 to 1"),
        (lambda: ColorJitter(hue=0.6), "hue must be from 0 to 0.5"),
        (lambda: ColorJitter(saturation=-1), "saturation"),
        (lambda: eval_transform(32, 0), "crop_pct"),
        (lambda: train_transform(32, augment="randall"), "RandAugment"),
        (lambda: train_transform(32, augment="autoaugment"), "imagenet"),
        (lambda: train_transform(32, augment="three", views=3), "views must be 1"),
        (lambda: ToFloat()(np.zeros((3, 8, 8), np.float32)), "uint8"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
