"""Corruption errors and ImageNet's other test sets: goldens, AlexNet itself, and protocols that must not be mixed."""

import pytest
import torch

from vtkernels import evaluation as ev
from vtkernels.data.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from vtkernels.data.datasets._imagenet import NATURAL_ADVERSARIAL_IDS, RENDITION_IDS
from vtkernels.evaluation.corruption import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, COUNTED

GOLDEN = {"gaussian_noise": [0.5, 0.6, 0.7, 0.8, 0.9], "fog": [0.2, 0.25, 0.3, 0.35, 0.4]}
ALEXNET = {name: [error] * 5 for name, error in ALEXNET_ERRORS.items()}
# whose means the table must hold
PER_SEVERITY = {
    "gaussian_noise": [0.69528, 0.82542, 0.93554, 0.98138, 0.99452],
    "shot_noise": [0.71224, 0.85108, 0.93574, 0.98182, 0.99146],
    "impulse_noise": [0.78374, 0.89808, 0.9487, 0.9872, 0.99548],
    "defocus_blur": [0.65624, 0.73202, 0.85036, 0.91364, 0.94714],
    "glass_blur": [0.64308, 0.75054, 0.88806, 0.91622, 0.93344],
    "motion_blur": [0.5843, 0.70048, 0.82108, 0.8975, 0.92638],
}


def test_golden_corruption_errors():
    assert ev.corruption_error(GOLDEN["gaussian_noise"], "gaussian_noise") == pytest.approx(78.96862, abs=1e-5)
    assert ev.corruption_error(GOLDEN["fog"], "fog") == pytest.approx(36.61556, abs=1e-5)
    assert ev.mean_corruption_error(GOLDEN, ("gaussian_noise", "fog")) == pytest.approx(57.79209, abs=1e-5)
    assert ev.mean_error(GOLDEN, ("gaussian_noise", "fog")) == pytest.approx(0.5, abs=1e-12)


def test_alexnet_is_a_hundred():
    assert ev.mean_corruption_error(ALEXNET) == pytest.approx(100, abs=1e-9)
    assert ev.relative_mean_corruption_error(ALEXNET, ALEXNET_CLEAN_ERROR) == pytest.approx(100, abs=1e-9)
    for name, errors in PER_SEVERITY.items():
        assert sum(errors) / 5 == pytest.approx(ALEXNET_ERRORS[name], abs=1e-9)
        assert ev.corruption_error(errors, name) == pytest.approx(100, abs=1e-6)


def test_the_fifteen_are_averaged_and_the_four_are_not():
    assert COUNTED == CORRUPTIONS and tuple(ALEXNET_ERRORS) == CORRUPTIONS + EXTRA_CORRUPTIONS
    changed = ALEXNET | {name: [0.0] * 5 for name in EXTRA_CORRUPTIONS}
    assert ev.mean_corruption_error(changed) == ev.mean_corruption_error(ALEXNET)
    assert ev.mean_error({name: [0.1, 0.2, 0.3, 0.4, 0.5] for name in CORRUPTIONS}) == pytest.approx(0.3, abs=1e-12)


def test_sums_are_divided_and_not_ratios_averaged():
    relative = ev.relative_corruption_error([0.5, 0.6, 0.7, 0.8, 0.9], "fog", 0.3)
    assert relative == pytest.approx(100 * (3.5 - 1.5) / (5 * (0.819324 - 0.4348)), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ev.mean_corruption_error(GOLDEN), "none of shot_noise, impulse_noise"),
        (lambda: ev.mean_error(GOLDEN, ()), "some corruptions"),
        (lambda: ev.corruption_error([0.5] * 4, "fog"), "be 5, one for each severity, got 4"),
        (lambda: ev.corruption_error([50.0] * 5, "fog"), "divide percents by 100"),
        (lambda: ev.corruption_error([float("nan")] * 5, "fog"), "fractions from 0 to 1, got nan"),
        (lambda: ev.corruption_error([0.5] * 5, "rain"), "'rain'"),
    ],
)
def test_bad_errors_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_real_counts_images_with_a_label_only():
    logits = torch.tensor([[9.0, 1, 2, 3], [1, 9, 2, 3], [1, 2, 9, 3], [1, 3, 2, 9]])
    labels = [[], [0, 1], [0, 3], [3]]
    assert ev.real_accuracy(logits, labels) == pytest.approx(2 / 3, abs=1e-12)
    assert ev.real_accuracy(logits, labels, 2) == 1
    marked = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)
    assert ev.real_accuracy(logits, marked) == ev.real_accuracy(logits, labels)
    order = [2, 0, 3, 1]
    assert ev.real_accuracy(logits[order], [labels[place] for place in order]) == ev.real_accuracy(logits, labels)
    with pytest.raises(TypeError, match="hold a list of classes for each image, got 0"):
        ev.real_accuracy(logits, list(range(len(logits))))
    with pytest.raises(ValueError, match="none at all"):
        ev.real_accuracy(logits, [[]] * 4)
    with pytest.raises(ValueError, match="lie in 0..3, got 4..4"):
        ev.real_accuracy(logits, [[4], [], [], []])
    with pytest.raises(ValueError, match=r"as many as the samples \(4\), got 3"):
        ev.real_accuracy(logits, labels[:3])


def test_masked_and_unmasked_are_two_measures():
    ids = RENDITION_IDS
    assert len(ids) == 200 and sum(ids) == 86135
    targets = torch.arange(200)
    logits = torch.zeros(200, 1000)
    logits[targets, torch.tensor(ids)] = 1.0
    # all mass outside of the 200, where only the order inside decides
    outside = next(number for number in range(1000) if number not in ids)
    logits[:, outside] = 50.0
    assert ev.subset_accuracy(logits, targets, ids) == 1
    assert ev.subset_accuracy(logits, targets, ids, masked=False) == 0
    assert ev.subset_accuracy(logits, targets, ids, k=5, masked=False) == 1
    with pytest.raises(ValueError, match="different classes"):
        ev.class_logits(logits, [1, 1])
    with pytest.raises(ValueError, match="lie in 0..999"):
        ev.class_logits(logits, [1, 1000])


def test_natural_adversarial_classes_are_others():
    ids = NATURAL_ADVERSARIAL_IDS
    assert len(set(ids)) == 200 and list(ids) == sorted(ids) and ids[0] >= 0 and ids[-1] < 1000 and set(ids) != set(RENDITION_IDS)
