"""Top-k accuracy, confusion, precision, recall and F1: the goldens, scikit-learn, and what must not be counted as right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional import peer

from vtkernels import evaluation as ev

GOLDEN_TARGETS, GOLDEN_PREDICTED = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3], [0, 1, 0, 1, 2, 2, 2, 0, 2, 1]


def scores_of(predicted, targets, classes):
    return ev.class_scores(ev.confusion_matrix(torch.tensor(predicted), torch.tensor(targets), classes), classes)


def test_the_golden_confusion_and_its_scores():
    confusion = ev.confusion_matrix(torch.tensor(GOLDEN_PREDICTED), torch.tensor(GOLDEN_TARGETS), 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [1, 0, 3, 0], [0, 1, 0, 0]]
    scores = ev.class_scores(confusion)
    assert scores.precision.tolist() == pytest.approx([2 / 3, 1 / 3, 0.75, 0], abs=1e-12)
    assert scores.recall.tolist() == pytest.approx([2 / 3, 0.5, 0.75, 0], abs=1e-12)
    assert scores.f1.tolist() == pytest.approx([2 / 3, 0.4, 0.75, 0], abs=1e-12)
    assert scores.averaged("macro") == pytest.approx((0.4375, 0.479167, 0.454167), abs=1e-6)
    assert scores.averaged("micro") == pytest.approx((0.6, 0.6, 0.6), abs=1e-12)


def test_constant_answers_have_a_high_accuracy_and_a_low_f1():
    targets = [0] * 90 + [1] * 10
    scores = scores_of([0] * 100, targets, 2)
    logits = torch.tensor([[1.0, 0.0]]).expand(100, 2)
    assert ev.top_k_accuracy(logits, torch.tensor(targets)) == 0.9
    assert scores.recall.tolist() == [1, 0]
    assert scores.averaged("macro")[2] == pytest.approx(0.473684, abs=1e-6)


@st.composite
def labelled(draw):
    classes, count = draw(st.integers(2, 7)), draw(st.integers(1, 40))
    # few of the classes need to occur
    labels = st.lists(st.integers(0, draw(st.integers(0, classes - 1))), min_size=count, max_size=count)
    return draw(labels), draw(labels), classes


@given(labelled())
@settings(max_examples=60, deadline=None)
def test_scores_equal_those_of_scikit_learn(sample):
    metrics = peer("sklearn.metrics")
    predicted, targets, classes = sample
    everything, confusion = list(range(classes)), ev.confusion_matrix(torch.tensor(predicted), torch.tensor(targets), classes)
    np.testing.assert_array_equal(confusion, metrics.confusion_matrix(targets, predicted, labels=everything))
    scores = ev.class_scores(confusion)
    single = metrics.precision_recall_fscore_support(targets, predicted, labels=everything, zero_division=0)
    for own, theirs in zip((scores.precision, scores.recall, scores.f1, scores.support), single, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)
    for average in ("macro", "micro", "weighted"):
        for absent, labels in (("exclude", None), ("zero", everything)):
            # without labels scikit-learn knows the classes that occur
            theirs = metrics.precision_recall_fscore_support(targets, predicted, labels=labels, average=average, zero_division=0)[:3]
            np.testing.assert_allclose(scores.averaged(average, absent), theirs, rtol=0, atol=1e-12)
    present = [label for label in everything if label in targets]
    recalls = metrics.recall_score(targets, predicted, labels=present, average="macro", zero_division=0)
    assert scores.balanced_accuracy == pytest.approx(recalls, abs=1e-12)


@given(st.integers(0, 10**6), st.integers(3, 9), st.integers(1, 30), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_top_k_equals_scikit_learns(seed, classes, count, k):
    metrics = peer("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    # a permutation in each row: no ties
    logits = torch.stack([torch.randperm(classes, generator=generator) for _ in range(count)]).double()
    targets = torch.randint(classes, (count,), generator=generator)
    theirs = metrics.top_k_accuracy_score(targets, logits, k=min(k, classes), labels=range(classes)) if k < classes else 1.0
    assert ev.top_k_accuracy(logits, targets, k) == pytest.approx(theirs, abs=1e-12)
    order = torch.randperm(count, generator=generator)
    assert ev.top_k_accuracy(logits[order], targets[order], k) == pytest.approx(theirs, abs=1e-12)


def test_counts_equal_those_of_torchmetrics():
    functional = peer("torchmetrics.functional.classification")
    predicted, targets = torch.randint(6, (500,)), torch.randint(6, (500,))
    ours = ev.confusion_matrix(predicted, targets, 6)
    assert torch.equal(ours, functional.multiclass_confusion_matrix(predicted, targets, 6))
    # which computes in float32
    assert ev.class_scores(ours).averaged("macro")[2] == pytest.approx(functional.multiclass_f1_score(predicted, targets, 6).item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_logits_and_nan_are_no_answer(dtype):
    for value in (0.0, 1.5, float("nan"), float("inf"), -float("inf")):
        logits = torch.full((8, 10), value, dtype=dtype)
        for target in (0, 9):
            targets = torch.full((8,), target)
            assert ev.top_k_accuracy(logits, targets, 1) == ev.top_k_accuracy(logits, targets, 5) == 0
        assert ev.predicted_classes(logits).tolist() == [-1] * 8


def test_one_nan_makes_a_sample_wrong_and_leaves_the_others():
    logits = torch.eye(4)
    assert ev.top_k_accuracy(logits, torch.arange(4)) == 1
    # also where another class is the target's
    logits[1, 3] = float("nan")
    assert ev.top_k_correct(logits, torch.arange(4)).tolist() == [True, False, True, True]
    assert ev.predicted_classes(logits).tolist() == [0, -1, 2, 3]


@given(labelled())
@settings(max_examples=20, deadline=None)
def test_counts_without_the_matrix_are_the_same(sample):
    predicted, targets, classes = sample
    predicted, targets = torch.tensor([-1, *predicted]), torch.tensor([0, *targets])
    direct, by_matrix = ev.count_classes(predicted, targets, classes), ev.class_scores(ev.confusion_matrix(predicted, targets, classes), classes)
    for name in ("support", "predicted", "hits", "f1"):
        assert torch.equal(getattr(direct, name), getattr(by_matrix, name))


def test_ties_go_to_the_lower_class_in_all_measures():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])
    assert ev.predicted_classes(logits).tolist() == [1, 0]
    for targets in ([1, 0], [2, 1], [0, 2]):
        right = ev.top_k_correct(logits, torch.tensor(targets))
        assert torch.equal(right, ev.predicted_classes(logits) == torch.tensor(targets))
    assert ev.top_k_correct(logits, torch.tensor([2, 1]), 2).all() and not ev.top_k_correct(logits, torch.tensor([0, 2]), 2).any()


def test_samples_without_an_answer_are_misses_of_their_class_and_of_no_other():
    scores = scores_of([0, -1, 1, 1], [0, 0, 1, -1], 2)
    assert scores.recall.tolist() == [0.5, 1.0]
    assert scores.precision.tolist() == [1.0, 0.5]
    assert ev.confusion_matrix(torch.tensor([-1]), torch.tensor([-1]), 2).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_several_classes_are_right_if_any_is():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    marked = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
    assert ev.top_k_correct(logits, marked).tolist() == [False, True, False, False]
    assert ev.top_k_correct(logits, marked, 2).tolist() == [True, True, False, False]
    assert ev.top_k_correct(logits, marked, 3).tolist() == [True, True, True, False]
    masked = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert not ev.top_k_correct(masked, torch.tensor([[True, False, True]])).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ev.top_k_accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), "at least one sample"),
        (lambda: ev.top_k_accuracy(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)), "at least two classes"),
        (lambda: ev.top_k_accuracy(torch.zeros(3, 2), torch.tensor([0, 1, 2])), "lie in 0..1, got 0..2"),
        (lambda: ev.top_k_accuracy(torch.zeros(3, 2), torch.tensor([0, 1, -1])), "lie in 0..1, got -1..1"),
        (lambda: ev.top_k_accuracy(torch.zeros(3, 2), torch.tensor([0, 1])), r"as many as the samples \(3\), got 2"),
        (lambda: ev.top_k_accuracy(torch.zeros(3, 2), torch.zeros(3, 2)), "must be bool"),
        (lambda: ev.top_k_accuracy(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)), "mark a class of each sample"),
        (lambda: ev.top_k_accuracy(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), 0), "k must be at least 1"),
        (lambda: ev.confusion_matrix(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), 1), "num_classes must be at least 2"),
        (lambda: ev.confusion_matrix(torch.tensor([]).long(), torch.tensor([]).long(), 3), "at least one sample"),
        (lambda: ev.class_scores(torch.zeros(3, 3, dtype=torch.long)), "at least one sample"),
        (lambda: ev.class_scores(torch.ones(3, 4)), "must be .K, K."),
        (lambda: ev.class_scores(torch.ones(3, 3)).averaged("mean"), "macro, micro, weighted"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_soft_targets_are_refused():
    with pytest.raises(TypeError, match="whole numbers"):
        ev.top_k_accuracy(torch.zeros(3, 2), torch.tensor([0.0, 1.0, 0.5]))
