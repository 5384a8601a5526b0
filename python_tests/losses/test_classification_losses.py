"""Losses of classes: golden numbers, and torch and timm beside them."""

import pytest
import torch
from loss_goldens import T, Y, Z, equal, one_hot, random
from optional import peer
from torch.nn import functional as F

from vtkernels import losses

P = T.softmax(1)


def test_cross_entropy():
    equal(losses.cross_entropy(Z, Y), 0.6691254152281065)
    equal(losses.cross_entropy(Z, one_hot()), 0.6691254152281065)
    equal(losses.cross_entropy(Z, P), F.cross_entropy(Z, P))
    equal(losses.cross_entropy(Z, torch.tensor([1, -100])), F.cross_entropy(Z[:1], Y[:1]))
    equal(losses.cross_entropy(Z, Y, reduction="none"), F.cross_entropy(Z, Y, reduction="none"))
    equal(losses.cross_entropy(Z, Y, reduction="sum"), F.cross_entropy(Z, Y, reduction="sum"))


def test_soft_targets_are_not_normalised():
    equal(losses.soft_target_cross_entropy(Z, 3 * P), 3 * F.cross_entropy(Z, P))
    x = Z.clone().requires_grad_()
    losses.soft_target_cross_entropy(x, 3 * P, reduction="sum").backward()
    equal(x.grad, 3 * (Z.softmax(1) - P))
    timm = peer("timm.loss")
    equal(losses.SoftTargetCrossEntropy()(Z, 3 * P), timm.SoftTargetCrossEntropy()(Z, 3 * P))


def test_balanced_cross_entropy_divides_by_weights_or_by_samples():
    weight = torch.tensor([1, 2, 3, 4], dtype=torch.float64)
    equal(losses.balanced_cross_entropy(Z, Y, weight=weight), F.cross_entropy(Z, Y, weight=weight))
    equal(losses.balanced_cross_entropy(Z, Y, weight=weight, reduction="mean"), F.cross_entropy(Z, Y, weight=weight, reduction="sum") / 2)
    for reduction in ("weighted_mean", "mean", "sum", "none"):
        soft = losses.balanced_cross_entropy(Z, one_hot(), weight=weight, reduction=reduction)
        equal(losses.balanced_cross_entropy(Z, Y, weight=weight, reduction=reduction), soft)
        equal(losses.BalancedCrossEntropy(weight=weight, reduction=reduction)(Z, Y), soft)
    ignored = torch.tensor([1, -1])
    for reduction in ("weighted_mean", "mean"):
        found = losses.balanced_cross_entropy(Z, ignored, weight=weight, ignore_index=-1, reduction=reduction)
        equal(found, losses.balanced_cross_entropy(Z[:1], Y[:1], weight=weight, reduction=reduction))


def test_weights_of_classes():
    counts = [10, 30, 60]
    equal(losses.inverse_frequency_weights(counts), [100 / 30, 100 / 90, 100 / 180])
    equal(losses.effective_number_weights(counts, 0.9), [0.1 / (1 - 0.9**n) for n in counts])
    equal(losses.effective_number_weights(counts, 0.0), [1, 1, 1])
    limit = losses.effective_number_weights(counts, 1 - 1e-9, mean_one=True)
    torch.testing.assert_close(limit, losses.inverse_frequency_weights(counts, mean_one=True), rtol=1e-6, atol=0)
    equal(limit.mean(), 1.0)


@pytest.mark.parametrize(
    ("convention", "golden"),
    [
        ("szegedy", 0.7716254152281066),
        ("timm_mixup", 0.7716254152281066),
        ("tensorflow", 0.7716254152281066),
        ("davda54", 0.370847879636514),
        ("thuml", 0.7548972798474038),
    ],
)
def test_label_smoothing(convention, golden):
    equal(losses.label_smoothing_cross_entropy(Z, Y, convention=convention), golden)
    equal(losses.label_smoothing_cross_entropy(Z, one_hot(), convention=convention), golden)
    plain = losses.label_smoothing_cross_entropy(Z, Y, convention=convention, smoothing=0.0)
    equal(plain, losses.cross_entropy(Z, Y))
    ignored = losses.label_smoothing_cross_entropy(Z, torch.tensor([1, -100]), convention=convention)
    equal(ignored, losses.label_smoothing_cross_entropy(Z[:1], Y[:1], convention=convention))


def test_values_of_smoothed_targets():
    """The published example for eps 0.1 and four classes prints 1 where its formula has 0.925."""
    on, off, _ = losses.label_smoothing_convention("szegedy", 0.1, 4)
    assert (on, off) == (0.925, 0.025)
    on, off, _ = losses.label_smoothing_convention("davda54", 0.1, 4)
    assert on + 3 * off == pytest.approx(1.0) and on == 0.9
    on, off, _ = losses.label_smoothing_convention("thuml", 0.1, 4)
    assert on + 3 * off == pytest.approx(1.0 - 0.1 / 4)


def test_smoothing_before_mixing_is_smoothing_the_mixture():
    smooth = 0.9 * one_hot() + 0.025
    mixed = 0.7 * smooth + 0.3 * smooth.flip(0)
    found = losses.label_smoothing_cross_entropy(Z, 0.7 * one_hot() + 0.3 * one_hot().flip(0), convention="timm_mixup")
    equal(found, losses.cross_entropy(Z, mixed))
    equal(losses.label_smoothing_cross_entropy(Z, Y), peer("timm.loss").LabelSmoothingCrossEntropy(0.1)(Z, Y))


def test_davda54_reaches_zero():
    """Where the prediction is the smoothed target itself."""
    target = torch.full((2, 4), 0.1 / 3, dtype=torch.float64).scatter(1, Y[:, None], 0.9)
    equal(losses.label_smoothing_cross_entropy(target.log(), Y, convention="davda54"), 0.0)


def test_focal():
    equal(losses.focal_loss(Z, Y), 0.1745332533599384)
    equal(losses.focal_loss(Z, one_hot()), 0.1745332533599384)
    alpha = torch.tensor([0.25, 0.5, 1, 2], dtype=torch.float64)
    p, a = Z.softmax(1)[torch.arange(2), Y], alpha[Y]
    equal(losses.focal_loss(Z, Y, gamma=1.5, alpha=alpha), (-a * (1 - p) ** 1.5 * p.log()).mean())
    equal(losses.FocalLoss(gamma=0.0, alpha=alpha)(Z, Y), losses.balanced_cross_entropy(Z, Y, weight=alpha, reduction="mean"))
    equal(losses.focal_loss(Z, torch.tensor([1, -100])), losses.focal_loss(Z[:1], Y[:1]))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gradient_of_focal(gamma):
    x = Z.clone().requires_grad_()
    losses.focal_loss(x, Y, gamma=gamma, reduction="sum").backward()
    vector = Z.softmax(1)
    p = vector.gather(1, Y[:, None])
    equal(x.grad, (gamma * p * (1 - p) ** (gamma - 1) * p.log() - (1 - p) ** gamma) * (one_hot() - vector))
    # where the sample is right beyond doubt, the slope of a power below 1 is infinite, the gradient is not
    sure = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    losses.focal_loss(sure, torch.tensor([0]), gamma=gamma).backward()
    assert (sure.grad == 0).all()


def test_sigmoid_focal():
    vision = peer("torchvision.ops")
    logits, target = random(5, 3), (random(5, 3, seed=1) > 0.5).double()
    for alpha, gamma in ((0.25, 2.0), (0.75, 1.5)):
        theirs = vision.sigmoid_focal_loss(logits, target, alpha, gamma)
        equal(losses.sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="none"), theirs)
        equal(losses.sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma), theirs.sum() / target.sum())
    without = losses.sigmoid_focal_loss(logits, target, alpha=None, gamma=0.0, reduction="mean")
    equal(without, F.binary_cross_entropy_with_logits(logits, target))
    # no positive anchor: the sum itself
    equal(losses.sigmoid_focal_loss(logits, 0 * target), losses.sigmoid_focal_loss(logits, 0 * target, reduction="sum"))


def test_sigmoid_focal_of_classes_knows_background_and_ignored_anchors():
    logits, target = random(4, 3), torch.tensor([2, -1, -2, 0])
    dense = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    for reduction in ("positives", "sum", "mean"):
        expected = losses.sigmoid_focal_loss(logits[[0, 1, 3]], dense, reduction=reduction)
        equal(losses.SigmoidFocalLoss(reduction=reduction)(logits, target), expected)
    assert (losses.sigmoid_focal_loss(logits, target, reduction="none")[2] == 0).all()
    assert losses.focal_prior_bias() == pytest.approx(-4.59512, abs=1e-5)


def test_binary_cross_entropy():
    equal(losses.binary_cross_entropy(Z, Y), 0.7094429822638164)
    equal(losses.binary_cross_entropy(Z, Y, target_threshold=0.2), 0.6838179822638166)
    equal(losses.binary_cross_entropy(Z, Y, sum_classes=True), 4 * 0.7094429822638164)
    x = Z.clone().requires_grad_()
    losses.binary_cross_entropy(x, P, reduction="sum").backward()
    equal(x.grad, Z.sigmoid() - P)


@pytest.mark.parametrize(
    "options", [{}, {"smoothing": 0.2}, {"target_threshold": 0.2}, {"sum_classes": True}, {"weight": 1}, {"pos_weight": 1}, {"reduction": "none"}]
)
def test_binary_cross_entropy_is_timms(options):
    options = {name: random(4, seed=2).exp() if name.endswith("weight") else value for name, value in options.items()}
    theirs = peer("timm.loss").BinaryCrossEntropy(**options)
    ours = losses.BinaryCrossEntropy(**options)
    for target in (Y, P):
        equal(ours(Z, target), theirs(Z, target))


def test_thresholds_and_smoothing_do_not_make_every_class_positive(recwarn):
    with pytest.raises(ValueError, match=r"binary_cross_entropy: target_threshold must be at least 0.025 where classes are smoothed, else every class"):
        losses.binary_cross_entropy(Z, Y, target_threshold=0.0)
    # several labels, and probabilities some of which are 0, are what the threshold is for
    losses.binary_cross_entropy(Z, torch.ones_like(Z), target_threshold=0.0)
    losses.binary_cross_entropy(Z, 0.7 * one_hot() + 0.3 * one_hot().flip(0), target_threshold=0.0)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="all targets lie above target_threshold=0.0: every class would be positive; were they smoothed before"):
        losses.binary_cross_entropy(Z, 0.9 * one_hot() + 0.025, target_threshold=0.0)


def test_asymmetric():
    equal(losses.asymmetric_single_label_loss(Z, Y), 0.31173240690889986)
    equal(losses.AsymmetricSingleLabelLoss()(Z, one_hot()), 0.31173240690889986)
    equal(losses.asymmetric_multi_label_loss(Z, one_hot()), 0.6177957738193359)


@pytest.mark.parametrize(("negative", "positive", "margin"), [(4.0, 1.0, 0.05), (2.0, 0.0, 0.0), (3.0, 1.5, 0.2)])
def test_asymmetric_is_timms(negative, positive, margin):
    """Of one image, since timm's sum has become a mean over the batch."""
    theirs = peer("timm.loss").AsymmetricLossMultiLabel(negative, positive, margin)
    logits, labels = random(6, 5).float(), (random(6, 5, seed=1) > 0).float()
    expected = torch.stack([theirs(x[None], y[None]) for x, y in zip(logits, labels, strict=True)])
    for reduction, total in (("sum", expected.sum()), ("batchmean", expected.mean()), ("mean", expected.mean() / 5)):
        options = {"gamma_negative": negative, "gamma_positive": positive, "margin": margin, "reduction": reduction}
        torch.testing.assert_close(losses.AsymmetricMultiLabelLoss(**options)(logits, labels), total, rtol=1e-5, atol=1e-6)


def test_detached_focus_is_a_constant():
    x = Z.clone().requires_grad_()
    losses.asymmetric_multi_label_loss(x, one_hot(), gamma_negative=0.0, gamma_positive=1.0, margin=0.0, detach_focus=True).backward()
    positives = one_hot() * (1 - Z.sigmoid())
    equal(x.grad, -positives * positives + (1 - one_hot()) * Z.sigmoid())
