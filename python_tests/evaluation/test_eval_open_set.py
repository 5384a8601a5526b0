"""Rejection of unknown classes: scores, and the measures against scikit-learn and by definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional import peer

from vtkernels import evaluation as ev


def test_golden_auroc():
    assert ev.auroc([0.9, 0.8, 0.4], [0.7, 0.3, 0.2, 0.1]) == pytest.approx(0.9166667, abs=1e-7)


@st.composite
def two_groups(draw):
    # few distinct values, so that there are many ties
    scores = st.lists(st.integers(-3, draw(st.integers(-3, 12))).map(lambda value: value / 4), min_size=1, max_size=30)
    return draw(scores), draw(scores)


@given(two_groups())
@settings(max_examples=80, deadline=None)
def test_areas_equal_scikit_learns(groups):
    metrics = peer("sklearn.metrics")
    positive, negative = groups
    truth, scores = [1] * len(positive) + [0] * len(negative), positive + negative
    assert ev.auroc(positive, negative) == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    assert ev.average_precision(positive, negative) == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)
    pairs = np.sign(np.subtract.outer(positive, negative))
    assert ev.auroc(positive, negative) == pytest.approx((pairs + 1).mean() / 2, abs=1e-12)
    assert ev.auroc(negative, positive) == pytest.approx(1 - ev.auroc(positive, negative), abs=1e-12)


@given(two_groups(), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
@settings(max_examples=80, deadline=None)
def test_the_false_alarms_by_definition(groups, wanted):
    positive, negative = map(np.array, groups)
    points = {}
    for threshold in sorted({*groups[0], *groups[1]}, reverse=True):
        recall, alarms = (positive >= threshold).mean(), (negative >= threshold).mean()
        # at recall 1 the first counts, before it the last
        if recall < 1 or 1.0 not in points:
            points[recall] = alarms
    nearest = min(abs(recall - wanted) for recall in points)
    allowed = {alarms for recall, alarms in points.items() if abs(abs(recall - wanted) - nearest) < 1e-12}
    assert ev.fpr_at_recall(positive, negative, wanted) in allowed
    enough = [alarms for recall, alarms in points.items() if recall >= wanted]
    reached = ev.fpr_at_recall(positive, negative, wanted, rule="at_least")
    assert reached <= min(enough) + 1e-12


def test_the_closest_recall_may_lie_below():
    # recalls .5 and 1: the nearer to .7 is .5
    assert ev.fpr_at_recall([0.9, 0.1], [0.1, 0.1, 0.05], 0.7) == 0
    assert ev.fpr_at_recall([0.9, 0.1], [0.1, 0.1, 0.05], 0.7, rule="at_least") == pytest.approx(2 / 3)
    # thresholds .9 and .5 have one recall: the lower counts, as published
    assert ev.fpr_at_recall([0.9, 0.1], [0.5, 0.5, 0.05], 0.6) == pytest.approx(2 / 3)
    assert ev.fpr_at_recall([0.9, 0.1], [0.5, 0.5, 0.05], 0.5, rule="at_least") == 0


@given(two_groups())
@settings(max_examples=30, deadline=None)
def test_monotone_transforms_change_nothing(groups):
    positive, negative = (np.array(group) for group in groups)
    for measure in (ev.auroc, ev.average_precision, ev.fpr_at_recall):
        assert measure(np.exp(positive), np.exp(negative)) == measure(positive, negative)


def test_certainties():
    logits = torch.tensor([[4.0, 0, 0], [1.0, 1, 0.5], [-torch.inf, 3, 0]], dtype=torch.float64)
    probabilities = torch.softmax(logits, 1)
    np.testing.assert_allclose(ev.certainty(logits), probabilities.amax(1), atol=1e-14)
    assert ev.certainty(logits, "max_logit").tolist() == [4, 1, 3]
    np.testing.assert_allclose(ev.energy(logits, 2.0), -2 * torch.logsumexp(logits / 2, 1), atol=1e-14)
    assert torch.equal(ev.certainty(logits, "energy", 2.0), -ev.energy(logits, 2.0))
    entropies = [-sum(p * math.log(p) for p in row if p > 0) for row in probabilities.tolist()]
    np.testing.assert_allclose(ev.entropy(logits), entropies, atol=1e-14)
    for kind in ("max_softmax", "max_logit", "energy", "entropy"):
        scores = ev.certainty(logits, kind)
        assert scores[0] > scores[1], "the surer row has the higher score"


def test_unknown_is_positive():
    found = ev.open_set_scores(known=[0.9, 0.8, 0.7, 0.6], unknown=[0.5, 0.4])
    assert found == {"auroc": 1, "aupr": 1, "fpr95": 0}
    # answers that are sure of unknown classes are worth nothing
    assert ev.open_set_scores(known=[0.5, 0.4], unknown=[0.9, 0.8])["auroc"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ev.auroc([], [0.5]), "positive must hold at least one sample"),
        (lambda: ev.auroc([0.5], []), "negative must hold at least one sample"),
        (lambda: ev.open_set_scores([0.5], []), "unknown must hold at least one sample"),
        (lambda: ev.auroc([math.nan], [0.5]), "1 NaN"),
        (lambda: ev.fpr_at_recall([0.5], [0.5], 0), "recall must be above 0"),
        (lambda: ev.fpr_at_recall([0.5], [0.5], rule="first"), "'closest' or 'at_least'"),
        (lambda: ev.certainty(torch.zeros(2, 2), "softmax"), "max_softmax, max_logit, energy, entropy"),
        (lambda: ev.energy(torch.full((2, 2), math.nan)), "NaN or infinite"),
        (lambda: ev.energy(torch.zeros(2, 2), 0.0), "temperature must be positive"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
