"""Subsets and noisy labels."""

import numpy as np
import pytest

from vtkernels.data import create_dataset
from vtkernels.data.datasets import (
    LabelPool,
    Subset,
    class_balanced_subset,
    class_subset,
    fraction_subset,
    noisy_labels,
    stratified_split,
    unlabelled,
)


@pytest.fixture(scope="module")
def digits():
    return create_dataset("digits", size=8)


@pytest.fixture(scope="module")
def many():
    return create_dataset("shapes", count=40000)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.8, 1.0])
@pytest.mark.parametrize("among", ["all", "others"])
def test_noise_changes_the_stated_share(many, rate, among):
    noisy = noisy_labels(many, rate, seed=3, among=among)
    expected = rate if among == "others" else rate * 7 / 8
    # four standard deviations of a binomial
    assert abs(noisy.changed.mean() - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(many))
    np.testing.assert_array_equal(noisy.clean_targets, many.targets)
    np.testing.assert_array_equal(noisy.targets, noisy_labels(many, rate, seed=3, among=among).targets)
    if rate:
        assert not np.array_equal(noisy.targets, noisy_labels(many, rate, seed=4, among=among).targets)
        wrong = np.bincount(noisy.targets[noisy.changed], minlength=8) / noisy.changed.sum()
        assert np.all(abs(wrong - 1 / 8) < 0.02)


def test_noisy_samples_carry_the_noisy_label(digits):
    noisy = noisy_labels(digits, 0.5)
    index = int(np.flatnonzero(noisy.changed)[0])
    image, target = noisy[index]
    assert target == noisy.targets[index] != digits[index][1]
    np.testing.assert_array_equal(image, digits[index][0])
    # a subset of the noisy set keeps the noise
    assert Subset(noisy, [index])[0][1] == target


def test_balanced_subset(digits):
    part = class_balanced_subset(digits, 7, seed=1)
    assert np.bincount(part.targets).tolist() == [7] * 10
    assert len(np.unique(part.indices)) == 70
    image, target = part[3]
    np.testing.assert_array_equal(image, digits[part.indices[3]][0])
    assert target == digits[part.indices[3]][1]
    with pytest.raises(ValueError, match="be at most 1"):
        class_balanced_subset(digits, 1000)


def test_fractions_are_nested_and_have_the_published_sizes(digits):
    class Counted:
        classes, targets, statistics = ("a",), np.zeros(1281167, np.int64), digits.statistics

        def __len__(self):
            return 1281167

    assert [len(fraction_subset(Counted(), fraction)) for fraction in (1 / 2, 1 / 4, 1 / 10)] == [640583, 320291, 128116]
    tenth, half = (set(fraction_subset(digits, fraction, seed=2).indices) for fraction in (0.1, 0.5))
    assert tenth < half
    assert len(fraction_subset(digits, 0.0)) == 0
    # in floating point less than 29
    assert len(fraction_subset(Subset(digits, range(100)), 0.29)) == 29


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 1.0])
def test_stratified_split_keeps_shares(digits, fraction):
    rest, part = stratified_split(digits, fraction, seed=5)
    assert sorted([*rest.indices, *part.indices]) == list(range(len(digits)))
    assert len(part) == round(len(digits) * fraction)
    own, whole = np.bincount(part.targets, minlength=10), np.bincount(digits.targets)
    assert np.all(abs(own - whole * fraction) < 1)


def test_classes_are_renumbered(digits):
    part = class_subset(digits, ["7", "2"])
    assert part.classes == ("7", "2") and set(part.targets) == {0, 1}
    assert (part.targets == 0).sum() == (digits.targets == 7).sum()
    image, target = part[0]
    np.testing.assert_array_equal(image, digits[int(np.flatnonzero(np.isin(digits.targets, [2, 7]))[0])][0])
    assert target == part.targets[0]
    with pytest.raises(ValueError, match="classes of the set"):
        class_subset(digits, ["eleven"])


def test_pool_conserves_samples(digits):
    pool = LabelPool(digits, 3, seed=1)
    assert np.bincount(pool.labelled.targets).tolist() == [3] * 10
    chosen = pool.pool.indices[[5, 9]]
    pool.label(chosen)
    assert len(pool.labelled) == 32 and len(pool.labelled) + len(pool.pool) == len(digits)
    assert set(chosen) <= set(pool.labelled.indices) and not set(chosen) & set(pool.pool.indices)
    with pytest.raises(ValueError, match="without a label"):
        pool.label(chosen[:1])
    with pytest.raises(ValueError, match="different"):
        pool.label([50, 50])
    hidden = unlabelled(pool.pool)
    assert hidden[0][1] == -1 and set(hidden.targets) == {-1}
    np.testing.assert_array_equal(hidden[0][0], pool.pool[0][0])


def test_indices_are_checked(digits):
    with pytest.raises(ValueError, match=r"lie in 0\.\.1441"):
        Subset(digits, [1442])
    assert len(Subset(digits, [])) == 0
    with pytest.raises(ValueError, match=r"lie in 0\.\.1, got 1\.5"):
        noisy_labels(digits, 1.5)
