"""Calibration: the goldens with both conventions of edges, temperature, likelihood, and what does not depend on order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional import peer

from vtkernels import evaluation as ev

CONFIDENCE = [0.95, 0.92, 0.85, 0.63, 0.57, 0.31]
ON_EDGES = [0.95, 0.9, 0.85, 0.6, 0.55, 0.3]
CORRECT = [1, 1, 0, 1, 0, 0]
LOGITS = torch.tensor([[2, 0, 0], [0, 3, 0], [1, 0, 0.5], [0, 0, 2]], dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 2, 0])


def test_golden_errors():
    for closed in ("left", "right"):
        errors = [ev.calibration_error(CONFIDENCE, CORRECT, norm, 10, closed) for norm in ("mean", "rms", "max")]
        assert errors == pytest.approx([0.371666667, 0.463474199, 0.85], abs=1e-9)
    assert ev.calibration_error(ON_EDGES, CORRECT, bins=10, closed="right") == pytest.approx(0.208333, abs=1e-6)
    assert ev.calibration_error(ON_EDGES, CORRECT, bins=10, closed="left") == pytest.approx(0.375, abs=1e-12)


def test_golden_adaptive_errors():
    assert ev.adaptive_calibration_error(CONFIDENCE, CORRECT, bin_size=2) == pytest.approx(0.29179045, abs=1e-8)
    assert ev.adaptive_calibration_error(CONFIDENCE, CORRECT, bin_size=2, skip_last=True) == pytest.approx(0.28936711, abs=2e-8)
    # one bin, which the published loop leaves out
    assert ev.adaptive_calibration_error(CONFIDENCE, CORRECT, skip_last=True) == 0
    # the remainder belongs to the last bin
    assert ev.adaptive_reliability(CONFIDENCE, CORRECT, 4).counts.tolist() == [6]
    assert ev.adaptive_reliability(CONFIDENCE, CORRECT, 5).counts.tolist() == [6]
    assert ev.adaptive_reliability(CONFIDENCE, CORRECT, 3).counts.tolist() == [3, 3]


def test_golden_soft_f1_and_aurra():
    assert ev.soft_f1(CONFIDENCE, CORRECT) == pytest.approx(0.532494759, abs=1e-9)
    assert ev.aurra(CONFIDENCE, CORRECT) == pytest.approx(0.752777778, abs=1e-9)
    assert ev.soft_f1([1.0, 1.0], [1, 1]) == 0


def test_golden_temperature():
    assert ev.fit_temperature(LOGITS, TARGETS) == pytest.approx(1.5592651, abs=1e-4)
    temperature = ev.fit_temperature(LOGITS, TARGETS, tolerance=1e-10)
    assert temperature == pytest.approx(1.5592651, abs=5e-8)
    assert ev.negative_log_likelihood(LOGITS, TARGETS, temperature) == pytest.approx(0.8884797, abs=5e-8)
    assert ev.negative_log_likelihood(LOGITS, TARGETS) == pytest.approx(0.9385705, abs=5e-8)
    assert torch.equal(ev.predicted_classes(LOGITS / temperature), ev.predicted_classes(LOGITS))


def test_temperature_undoes_a_scale_and_stays_within_bounds():
    logits, targets = torch.randn(400, 5), torch.randint(5, (400,))
    logits[torch.arange(400), targets] += 1.5
    one = ev.fit_temperature(logits, targets, tolerance=1e-8)
    assert ev.fit_temperature(2 * logits, targets, tolerance=1e-8) == pytest.approx(2 * one, rel=1e-6)
    assert ev.fit_temperature(torch.eye(3) * 5, torch.arange(3)) == pytest.approx(0.2, abs=1e-4)
    assert ev.fit_temperature(torch.eye(3) * 5, torch.tensor([1, 2, 0])) == pytest.approx(5.0, abs=1e-4)
    assert ev.fit_temperature(logits, targets, tolerance=1e-300) == pytest.approx(one, abs=1e-7)


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 50), st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_likelihood_and_brier_equal_scikit_learns(seed, classes, count, scale):
    metrics = peer("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, dtype=torch.float64, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    probabilities = torch.softmax(logits, 1)
    # scikit-learn cuts probabilities off at the rounding of float64
    if probabilities.min() > 1e-13:
        theirs = metrics.log_loss(targets, probabilities.numpy(), labels=range(classes))
        assert ev.negative_log_likelihood(logits, targets) == pytest.approx(theirs, abs=1e-12, rel=1e-12)
    squares = ((probabilities - torch.eye(classes, dtype=torch.float64)[targets]) ** 2).sum(1).mean().item()
    assert ev.brier_score(logits, targets) == pytest.approx(squares, abs=1e-12)
    if classes == 2:
        assert ev.brier_score(logits, targets) == pytest.approx(2 * metrics.brier_score_loss(targets, probabilities[:, 1], labels=[0, 1]), abs=1e-12)
    np.testing.assert_allclose(ev.confidences(logits), probabilities.amax(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "theirs"), [("mean", "l1"), ("max", "max")])
def test_errors_equal_those_of_torchmetrics(norm, theirs):
    functional = peer("torchmetrics.functional.classification")
    probabilities = torch.softmax(2 * torch.randn(300, 4), 1)
    targets = torch.randint(4, (300,))
    confidence, predicted = probabilities.max(1)
    ours = ev.calibration_error(confidence, predicted == targets, norm, 15, "left")
    assert ours == pytest.approx(functional.multiclass_calibration_error(probabilities, targets, 4, n_bins=15, norm=theirs).item(), abs=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_order_does_not_matter(seed, count, bins):
    rng = np.random.default_rng(seed)
    # coarse values, so that there are ties
    confidence, correct = np.round(rng.random(count), 1), rng.random(count) < 0.6
    order = rng.permutation(count)
    for measure in (
        lambda c, y: ev.calibration_error(c, y, "rms", bins),
        lambda c, y: ev.adaptive_calibration_error(c, y, bin_size=3),
        ev.soft_f1,
        ev.aurra,
    ):
        assert measure(confidence, correct) == pytest.approx(measure(confidence[order], correct[order]), abs=1e-12)


def test_the_calibrated_are_calibrated_and_the_overconfident_are_not():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator, dtype=torch.float64)
    correct = torch.rand(200_000, generator=generator, dtype=torch.float64) < confidence
    # 15 bins of 13000 samples: each is known to half a percent
    assert ev.calibration_error(confidence, correct) < 0.005
    assert ev.calibration_error(confidence.sqrt(), correct) > 0.1


def test_empty_bins_and_the_ends():
    found = ev.reliability([0.0, 1.0], [0, 1], bins=10)
    assert found.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1] and found.error("max") == 0
    assert ev.reliability([0.0, 1.0], [0, 1], bins=10, closed="left").counts.tolist() == found.counts.tolist()
    # every tenth belongs where its own name says
    tenths = [number / 10 for number in range(1, 11)]
    assert ev.reliability(tenths, [1] * 10, bins=10, closed="right").counts.tolist() == [1] * 10
    assert ev.reliability([0.0, *tenths[:-1]], [1] * 10, bins=10, closed="left").counts.tolist() == [1] * 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ev.calibration_error([], []), "at least one sample"),
        (lambda: ev.calibration_error([1.5], [1]), r"lie in \[0, 1\]"),
        (lambda: ev.calibration_error([math.nan], [1]), "1 NaN of 1"),
        (lambda: ev.calibration_error([0.5], [2]), "true or false"),
        (lambda: ev.calibration_error([0.5], [1, 0]), "shape .1."),
        (lambda: ev.calibration_error([0.5], [1], "l2"), "mean, rms, max"),
        (lambda: ev.calibration_error([0.5], [1], bins=0), "bins must be at least 1"),
        (lambda: ev.reliability([0.5], [1], closed="both"), "'right' or 'left'"),
        (lambda: ev.adaptive_reliability([0.5], [1], 0), "bin_size"),
        (lambda: ev.confidences(torch.tensor([[0.0, math.nan], [0.0, 1.0]])), "NaN or infinite ones in 1 of 2 samples"),
        (lambda: ev.brier_score(torch.full((2, 2), -torch.inf), torch.tensor([0, 1])), "2 of 2 samples"),
        (lambda: ev.fit_temperature(LOGITS, TARGETS, low=2, high=1), "low below high"),
        (lambda: ev.confidences(LOGITS, 0.0), "temperature must be positive"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
