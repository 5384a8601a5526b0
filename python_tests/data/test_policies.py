"""RandAugment and AutoAugment: what is drawn, and that it is applied as Pillow would."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from images import pillow, random_image, require_imgops
from optional import peer

from vtkernels.data import augment
from vtkernels.data.augment import AutoAugment, RandAugment, RandomAutoAugment
from vtkernels.data.augment.auto_augment import CORRUPTIONS
from vtkernels.data.augment.levels import PAPER, TIMM, TIMM_INCREASING
from vtkernels.data.augment.policies import POLICIES
from vtkernels.data.augment.rand_augment import MEAN_FILL, OPS, WEIGHTS

TIMM_NAMES = {
    "rotate": "Rotate",
    "posterize": "Posterize",
    "posterize_original": "PosterizeOriginal",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "color": "Color",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@pytest.fixture(autouse=True)
def extension():
    require_imgops()


EVERY = {
    "rand": lambda: RandAugment.from_config("rand-m9-mstd0.5-inc1"),
    "rand plain": lambda: RandAugment.from_config("rand-m10-n4-p1"),
    "random": RandomAutoAugment,
    **{name: lambda name=name: AutoAugment(name) for name in POLICIES},
}


@pytest.mark.parametrize("name", EVERY)
def test_applies_what_it_draws(name):
    augmentation, rng = EVERY[name](), random.Random(name)
    fill = augmentation.fill if isinstance(augmentation.fill, tuple) else (augmentation.fill,) * 3
    changed = 0
    for seed in range(80):
        array = random_image(rng)
        steps = augmentation.draw(seed, *array.shape[:2])
        found = augmentation(array, seed)
        assert (found == pillow(array, steps, fill=fill)).all(), steps
        changed += (found != array).any()
    assert changed > 10


@pytest.mark.parametrize("increasing", (False, True))
def test_levels_are_timms(increasing):
    module = peer("timm.data.auto_augment")
    ours = TIMM_INCREASING if increasing else TIMM
    for name, theirs in TIMM_NAMES.items():
        if increasing and name in ("posterize", "solarize", "color", "contrast", "brightness", "sharpness"):
            theirs += "Increasing"
        for level in (0, 0.1, 2.4, 2.5, 5, 7.77, 9, 10):
            for seed in range(4):
                step = ours[name](augment.Stream(seed), level, 50, 80)
                (expected,) = module.LEVEL_TO_ARG[theirs](level, {"translate_pct": 0.45})[:1]
                side = {"translate_x": 80, "translate_y": 50}.get(name, 1)
                if name in TIMM_INCREASING and theirs.endswith("Increasing") and name not in ("posterize", "solarize"):
                    assert min(abs(step[1] - 1), 0.9) == pytest.approx(level / 10 * 0.9)
                else:
                    assert abs(step[1]) == pytest.approx(abs(expected) * side, abs=1e-12), (name, level)


def test_levels_beyond_ten():
    for steps in (TIMM, TIMM_INCREASING, PAPER):
        for name in steps:
            for level in (20, 100):
                augment.apply(np.zeros((4, 5, 3), np.uint8), [steps[name](augment.Stream(level), level, 4, 5)])


def test_papers_levels():
    stream = augment.Stream(0)
    ends = {"rotate": 30, "shear_x": 0.3, "translate_x": 150 / 331 * 100, "posterize": 4, "solarize": 0}
    for name, end in ends.items():
        assert abs(PAPER[name](stream, 9, 50, 100)[1]) == pytest.approx(end)
    assert PAPER["posterize"](stream, 0, 8, 8)[1] == 8
    assert [PAPER["posterize"](stream, level, 8, 8)[1] for level in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert abs(PAPER["color"](stream, 9, 8, 8)[1] - 1) == pytest.approx(0.9)
    signs = {math.copysign(1, PAPER["rotate"](stream, 5, 8, 8)[1]) for _ in range(50)}
    assert signs == {-1, 1}


def test_policies_are_complete():
    assert {name: len(policy) for name, policy in POLICIES.items()} == {"imagenet": 25, "imagenet_v0": 25, "cifar": 25, "cifar_full": 95, "svhn": 25}
    for policy in POLICIES.values():
        assert all(len(pair) == 2 for pair in policy)
        assert all(0 <= probability <= 1 and 0 <= level <= 10 for pair in policy for _, probability, level in pair)
    assert POLICIES["imagenet"][0] == (("posterize_original", 0.4, 8), ("rotate", 0.6, 9))
    assert POLICIES["cifar"][24] == (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1))


def test_timm_has_the_same_policies():
    module = peer("timm.data.auto_augment")
    names = {value.removesuffix("Rel"): key for key, value in TIMM_NAMES.items()} | {"AutoContrast": "autocontrast", "Equalize": "equalize", "Invert": "invert"}
    for ours, theirs in (("imagenet", "original"), ("imagenet_v0", "v0")):
        policy = [tuple((names[op.name.removesuffix("Rel")], op.prob, op.magnitude) for op in pair) for pair in module.auto_augment_policy(theirs)]
        assert sorted(policy) == sorted(POLICIES[ours])


def test_probabilities():
    never = AutoAugment([(("invert", 0.0, 5), ("equalize", 1.0, 5))])
    assert all(never.draw(seed, 8, 8) == [("equalize",)] for seed in range(100))
    half = RandAugment(num_ops=1)
    assert sum(len(half.draw(seed, 8, 8)) for seed in range(2000)) == pytest.approx(1000, abs=100)
    counts = Counter(step[0] for seed in range(3000) for step in RandAugment(prob=1).draw(seed, 8, 8))
    assert set(counts) == set(OPS)
    assert min(counts.values()) > 300 and max(counts.values()) < 500
    weighted = [RandAugment.from_config("rand-m9-p1-n3-tweights").draw(seed, 8, 8) for seed in range(500)]
    assert all(len({step[0] for step in steps}) == 3 for steps in weighted)
    assert Counter(steps[0][0] for steps in weighted)["rotate"] == pytest.approx(500 * 3 / sum(WEIGHTS.values()), abs=50)


def test_without_what_corruptions_test():
    for policy in POLICIES:
        names = {part[0] for pair in AutoAugment(policy, exclude=CORRUPTIONS).policy for part in pair}
        assert names and not names & set(CORRUPTIONS)
    plain = RandomAutoAugment(exclude=CORRUPTIONS)
    assert not {step[0] for seed in range(300) for step in plain.draw(seed, 8, 8)} & set(CORRUPTIONS)


def test_timms_grammar():
    augmentation = RandAugment.from_config("rand-m9-mstd0.5-inc1")
    assert (augmentation.magnitude, augmentation.num_ops, augmentation.prob, augmentation.mstd, augmentation.increasing) == (9, 2, 0.5, 0.5, True)
    assert augmentation.fill == MEAN_FILL
    plain = RandAugment.from_config("rand")
    assert (plain.magnitude, plain.increasing, plain.mstd, plain.mmax) == (10, False, 0, 10)
    assert RandAugment.from_config("rand-mstd101").mstd == math.inf
    assert RandAugment.from_config("rand-m15-n3-mmax30", prob=1.0).mmax == 30
    assert not RandAugment.from_config("rand-inc0").increasing
    levels = [RandAugment.from_config("rand-m6-mstd101")._level(augment.Stream(seed)) for seed in range(500)]
    assert 0 <= min(levels) < 0.2 and 5.8 < max(levels) <= 6


def test_the_seed_alone_decides():
    augmentation, array = RandAugment(prob=1), random_image(random.Random(0), color=True)
    assert (augmentation(array, 5) == augmentation(array, 5)).all()
    assert augmentation.draw(5, 32, 32) != augmentation.draw(6, 32, 32)
    image = peer("PIL.Image").fromarray(np.asarray(array))
    assert (augmentation(image, 5) == augmentation(array, 5)).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: RandAugment.from_config("augmix-m3"), "start with rand"),
        (lambda: RandAugment.from_config("rand-q3"), "got 'q3'"),
        (lambda: RandAugment.from_config("rand-m"), "got 'm'"),
        (lambda: RandAugment(prob=1.5), "prob must be from 0 to 1, got 1.5"),
        (lambda: RandAugment(ops=["blur"]), r"got \['blur'\]"),
        (lambda: AutoAugment("cifar10"), "one of imagenet, imagenet_v0, cifar, cifar_full, svhn, got 'cifar10'"),
        (lambda: AutoAugment([(("blur", 1, 1),)]), "blur"),
        (lambda: RandomAutoAugment(exclude=list(PAPER)), "exclude less"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()
