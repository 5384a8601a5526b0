"""Thresholds of classes and risk over coverage, by hand and against all thresholds there are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtkernels import evaluation as ev

SCORES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
PREDICTED = [0, 0, 0, 0, 1, 1]
TARGETS = [0, 0, -1, 0, -1, 1]


def thresholds(**options):
    return ev.choose_thresholds(SCORES, torch.tensor(PREDICTED), torch.tensor(TARGETS), 3, **options).values


def test_by_hand():
    # class 0 is right 2 of 2, 2 of 3, 3 of 4 times; class 1 never, then 1 of 2; class 2 is never predicted
    assert thresholds(precision=1.0) == (pytest.approx(0.75), math.inf, math.inf)
    assert thresholds(precision=0.75) == (-math.inf, math.inf, math.inf)
    assert thresholds(precision=0.5) == (-math.inf, -math.inf, math.inf)
    # F1 of class 0: 2/4, 4/5, 4/6, 6/7
    assert thresholds() == (-math.inf, -math.inf, math.inf)


def test_misses_of_the_class_count_in_f1():
    # accepting the second candidate, which is wrong, pays as little as it costs only where nothing is missed
    values = ev.choose_thresholds([0.9, 0.8], torch.tensor([0, 0]), torch.tensor([0, -1]), 2).values
    assert values[0] == pytest.approx(0.85)
    values = ev.choose_thresholds([0.9, 0.8, 0.7, 0.6], torch.tensor([0, 0, 0, 1]), torch.tensor([0, -1, 0, 0]), 2).values
    assert values[0] == -math.inf and values[1] == math.inf


def test_equal_scores_share_their_fate_and_count_from_the_threshold_on():
    values = ev.choose_thresholds([0.9, 0.8, 0.8], torch.zeros(3, dtype=torch.long), torch.tensor([0, 0, -1]), 2, precision=0.9)
    assert values.values[0] == pytest.approx(0.85)
    assert ev.ClassThresholds((0.8, 0.5)).apply([0.8, 0.79, 0.5, 0.9], torch.tensor([0, 0, 1, -1])).tolist() == [0, -1, 1, -1]
    # neighbouring floats have no middle
    low, high = 0.5, np.nextafter(0.5, 1)
    found = ev.choose_thresholds([low, high], torch.tensor([0, 0]), torch.tensor([-1, 0]), 2, precision=1.0)
    assert found.apply([low, high], torch.tensor([0, 0])).tolist() == [-1, 0]


def test_no_threshold_is_plain_argmax():
    logits = torch.randn(50, 4)
    predicted = ev.predicted_classes(logits)
    assert torch.equal(ev.ClassThresholds((-math.inf,) * 4).apply(ev.confidences(logits), predicted), predicted)
    assert (ev.ClassThresholds((math.inf,) * 4).apply(ev.confidences(logits), predicted) == -1).all()


@given(st.integers(0, 10**6), st.integers(2, 40), st.sampled_from([None, 0.5, 0.8, 0.95]))
@settings(max_examples=60, deadline=None)
def test_no_other_threshold_is_better(seed, count, precision):
    rng = np.random.default_rng(seed)
    scores, predicted, targets = np.round(rng.random(count), 1), rng.integers(0, 3, count), rng.integers(-1, 3, count)
    targets[0] = -1
    chosen = ev.choose_thresholds(scores, torch.tensor(predicted), torch.tensor(targets), 3, precision=precision).values
    order = rng.permutation(count)
    assert chosen == ev.choose_thresholds(scores[order], torch.tensor(predicted[order]), torch.tensor(targets[order]), 3, precision=precision).values
    for label in range(3):
        measured = {}
        for threshold in [*np.unique(scores[predicted == label]), math.inf]:
            accepted = (predicted == label) & (scores >= threshold)
            hits = (accepted & (targets == label)).sum()
            value = hits / max(accepted.sum(), 1) if precision is not None else 2 * hits / max(accepted.sum() + (targets == label).sum(), 1)
            measured[frozenset(np.flatnonzero(accepted))] = value
        own = frozenset(np.flatnonzero((predicted == label) & (scores >= chosen[label])))
        if precision is None:
            assert measured[own] == pytest.approx(max(measured.values()), abs=1e-12)
        else:
            fitting = [accepted for accepted, value in measured.items() if accepted and value >= precision]
            assert own == max(fitting, key=len, default=frozenset())


def test_risk_and_coverage():
    found = ev.risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.risk.tolist() == pytest.approx([0, 0.5, 1 / 3, 0.5], abs=1e-12)
    assert found.area == pytest.approx((0 + 0.5 + 1 / 3 + 0.5) / 4, abs=1e-12)
    assert found.area == pytest.approx(1 - ev.aurra([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]), abs=1e-12)


def test_risk_does_not_depend_on_the_order_of_equal_scores():
    first, second = (ev.risk_coverage([0.5] * 4, correct) for correct in ([1, 1, 0, 0], [0, 1, 0, 1]))
    assert first.area == second.area == pytest.approx(0.5, abs=1e-12)
    assert first.coverage.tolist() == [1.0] and first.risk.tolist() == [0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ev.choose_thresholds([0.5], torch.tensor([0]), torch.tensor([0]), 2), "hold negatives"),
        (lambda: ev.choose_thresholds([0.5], torch.tensor([0]), torch.tensor([-1]), 1), "num_classes must be at least 2"),
        (lambda: ev.choose_thresholds([math.nan], torch.tensor([0]), torch.tensor([-1]), 2), "1 NaN"),
        (lambda: ev.choose_thresholds([0.5], torch.tensor([0]), torch.tensor([-1]), 2, precision=0), "above 0"),
        (lambda: ev.choose_thresholds([], torch.tensor([]).long(), torch.tensor([]).long(), 2), "at least one sample"),
        (lambda: ev.ClassThresholds((0.5, 0.5)).apply([0.5], torch.tensor([2])), "lie in -1..1"),
        (lambda: ev.risk_coverage([], []), "at least one sample"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert ev.choose_thresholds([0.5], torch.tensor([0]), torch.tensor([0]), 2, without_negatives=True).values[0] == -math.inf
