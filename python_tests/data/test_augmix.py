"""AugMix against its formula, told in Pillow and numpy with the parameters it drew."""

import pickle
import random

import numpy as np
import pytest
from images import pillow, random_image, require_imgops

import vtkernels as vt
from vtkernels.data import augment
from vtkernels.data.augment import AugMix
from vtkernels.data.augment.augmix import ALL_OPS, OPS, Drawn

MEAN, STD = np.float32(augment.IMAGENET_MEAN), np.float32(augment.IMAGENET_STD)


@pytest.fixture(autouse=True)
def extension():
    require_imgops()


def formula(array, drawn):
    """Normalised first, mixed then, as published; float32 planes."""

    def normalized(image):
        return (image.reshape(*image.shape[:2], -1) / np.float32(255) - MEAN[: 3 if image.ndim == 3 else 1]) / STD[: 3 if image.ndim == 3 else 1]

    mixed = sum(np.float32(weight) * normalized(pillow(array, chain)) for weight, chain in zip(drawn.weights, drawn.chains, strict=True))
    result = np.float32(1 - drawn.mixture) * normalized(array) + np.float32(drawn.mixture) * mixed
    return result.transpose(2, 0, 1)


SETTINGS = ({}, {"severity": 10, "ops": "all"}, {"width": 1, "depth": 4}, {"width": 5, "alpha": 0.2, "severity": 1}, {"ops": ["posterize"], "severity": 10})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_formula(settings):
    augmix, rng = AugMix(**settings), random.Random(str(settings))
    for seed in range(60):
        array = random_image(rng)
        drawn = augmix.draw(seed, *array.shape[:2])
        # values of some units, each sum of a few products rounded to float32
        np.testing.assert_allclose(augmix(array, seed), formula(array, drawn), rtol=0, atol=4e-6)


def by_hand(array, seed, view, ops, severity, width, depth):
    """AugMix from its description, given nothing but uniform numbers."""
    stream, (height, columns) = augment.Stream(seed, view), array.shape[:2]

    def level(most):
        return stream.uniform(0.1, severity) * most / 10

    def signed(value):
        return -value if stream.uniform() > 0.5 else value

    arguments = {
        "posterize": lambda: 4 - int(level(4)),
        "solarize": lambda: 256 - int(level(256)),
        "rotate": lambda: signed(int(level(30))),
        "shear_x": lambda: signed(level(0.3)),
        "shear_y": lambda: signed(level(0.3)),
        "translate_x": lambda: signed(int(level(columns / 3))),
        "translate_y": lambda: signed(int(level(height / 3))),
        **{op: lambda: level(1.8) + 0.1 for op in ("color", "contrast", "brightness", "sharpness")},
    }
    weights = [-np.log(1 - stream.uniform()) for _ in range(width)]
    first, second = (-np.log(1 - stream.uniform()) for _ in range(2))
    chains = []
    for _ in range(width):
        chain = []
        for _ in range(depth if depth > 0 else 1 + stream.below(3)):
            op = ops[stream.below(len(ops))]
            chain.append((op, arguments[op]()) if op in arguments else (op,))
        chains.append(chain)
    return formula(array, Drawn([weight / sum(weights) for weight in weights], first / (first + second), chains))


@pytest.mark.parametrize("width, depth, severity, ops", [(3, -1, 3, OPS), (1, 5, 0.1, ALL_OPS), (4, -1, 10, ALL_OPS), (2, 2, 1, OPS)])
def test_the_description(width, depth, severity, ops):
    augmix, rng = AugMix(width=width, depth=depth, severity=severity, ops=ops), random.Random(width)
    for _ in range(60):
        array, seed, views = random_image(rng), rng.getrandbits(64), 3
        found = augmix.views(array, seed, 1 + views)
        for view in range(views):
            expected = by_hand(array, seed, view, ops, severity, width, depth)
            np.testing.assert_allclose(found[1 + view], expected, rtol=0, atol=4e-6)


def test_views_share_the_image_and_nothing_else():
    augmix, array = AugMix(), random_image(random.Random(1), color=True)
    out = np.full((3, 3, *array.shape[:2]), np.nan, np.float32)
    assert augmix.views(array, 7, out=out) is out
    assert (out[0] == augment.normalize(array)).all()
    assert (out[1] == augmix(array, 7)).all()
    for view in (0, 1):
        np.testing.assert_allclose(out[1 + view], formula(array, augmix.draw(7, *array.shape[:2], view)), rtol=0, atol=4e-6)
    assert augmix.draw(7, 32, 32, 0) != augmix.draw(7, 32, 32, 1)
    assert augmix.views(array, 7, num_views=1).shape == (1, 3, *array.shape[:2])


def test_draws_are_those_of_the_paper():
    augmix, names, depths = AugMix(severity=3), set(), set()
    mixtures = []
    for seed in range(2000):
        drawn = augmix.draw(seed, 224, 120)
        assert len(drawn.weights) == len(drawn.chains) == 3
        assert sum(drawn.weights) == pytest.approx(1, abs=1e-6)
        mixtures.append(drawn.mixture)
        depths |= {len(chain) for chain in drawn.chains}
        for name, value in ((*step, None)[:2] for chain in drawn.chains for step in chain):
            names.add(name)
            bounds = {"rotate": 9, "shear_x": 0.09, "shear_y": 0.09, "translate_x": int(40 * 0.3), "translate_y": int(224 / 3 * 0.3)}
            assert name not in bounds or abs(value) <= bounds[name]
            assert name != "posterize" or value in (3, 4)
            assert name != "solarize" or 256 - 76 <= value <= 254
    assert depths == {1, 2, 3}
    assert names == set(OPS)
    # Beta(1, 1) is uniform: mean 1/2, variance 1/12
    assert np.mean(mixtures) == pytest.approx(0.5, abs=4 / np.sqrt(12 * 2000))
    assert np.var(mixtures) == pytest.approx(1 / 12, rel=0.1)
    everything = AugMix(ops="all", depth=2)
    drawn = [everything.draw(seed, 32, 32) for seed in range(300)]
    assert {step[0] for one in drawn for chain in one.chains for step in chain} == set(ALL_OPS)
    assert {len(chain) for one in drawn for chain in one.chains} == {2}


@pytest.mark.parametrize("alpha", (0.3, 1.0, 4.0))
def test_weights_are_dirichlet(alpha):
    weights = np.array([AugMix(alpha=alpha, width=3).draw(seed, 8, 8).weights for seed in range(4000)])
    variance = (1 / 3) * (2 / 3) / (3 * alpha + 1)
    np.testing.assert_allclose(weights.mean(0), 1 / 3, atol=4 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(weights.var(0), variance, rtol=0.12)


def test_tiny_alpha_still_mixes():
    for seed in range(200):
        drawn = AugMix(alpha=1e-4).draw(seed, 8, 8)
        assert np.isfinite(drawn.weights).all() and sum(drawn.weights) == pytest.approx(1, abs=1e-6)


def test_the_seed_alone_decides():
    augmix, array = AugMix(), random_image(random.Random(2), color=True)
    first = augmix(array, 3)
    augmix(array, 4)
    assert (augmix(array, 3) == first).all()
    assert (pickle.loads(pickle.dumps(augmix))(array, np.int64(3)) == first).all()
    assert augmix.draw(-1, 8, 8) == augmix.draw(2**64 - 1, 8, 8)
    seeds = {augment.sample_seed(seed, epoch, index) for seed in (0, 1) for epoch in range(20) for index in range(500)}
    assert len(seeds) == 2 * 20 * 500


def test_a_loader_gives_the_same_whatever_the_workers():
    shapes = vt.data.create_dataset("shapes", "train")
    for transform, expected in ((AugMix(), np.float32), (AugMix().views, np.float32), (augment.RandAugment(), np.uint8)):
        batches = [next(iter(vt.data.create_loader(shapes, 8, train=True, workers=workers, transform=transform)))[0] for workers in (0, 2)]
        assert batches[0].numpy().dtype == expected
        assert (batches[0] == batches[1]).all()


def test_streams_are_philox():
    """Known answer of Philox4x32-10 for counter 0 and key 0."""
    assert augment.Stream(0).word() == 0x6627E8D5
    stream = augment.Stream(5, 6)
    numbers = [stream.uniform() for _ in range(4000)]
    assert min(numbers) >= 0 and max(numbers) < 1
    assert np.mean(numbers) == pytest.approx(0.5, abs=0.02)
    normal = [stream.normal() for _ in range(4000)]
    assert np.mean(normal) == pytest.approx(0, abs=0.07)
    assert np.std(normal) == pytest.approx(1, abs=0.05)
    assert {stream.below(7) for _ in range(200)} == set(range(7))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: AugMix(width=0), "width must be from 1"),
        (lambda: AugMix(depth=0), "depth must"),
        (lambda: AugMix(depth=-2), "depth must"),
        (lambda: AugMix(severity=11), "severity must be from 0.1 to 10, got 11"),
        (lambda: AugMix(alpha=0), "alpha must be positive"),
        (lambda: AugMix(ops=["blur"]), "some of autocontrast"),
        (lambda: AugMix(ops=[]), "some of autocontrast"),
        (lambda: AugMix(filter="box"), "bicubic, got 'box'"),
        (lambda: AugMix()(np.zeros((4, 4, 3), np.float32), 0), "dtype uint8"),
        (lambda: AugMix()(np.zeros((4, 4, 3), np.uint8), 1.5), "seed must be an int"),
        (lambda: AugMix()(np.zeros((4, 4, 3), np.uint8), 2**64), "64 bits"),
        (lambda: AugMix().views(np.zeros((4, 4, 3), np.uint8), 0, out=np.empty((3, 4, 4), np.float32)), r"\[3, 3, 4, 4\]"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
