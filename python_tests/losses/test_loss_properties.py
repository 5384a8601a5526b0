"""What holds for any logits: the losses that are cases of each other, gradients that sum to zero, bounds and symmetries."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtkernels import losses

quick = settings(max_examples=25, deadline=None)


@st.composite
def batches(draw):
    """Logits of any size, classes, probabilities some of which are 0."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1e-3, 1.0, 10.0, 200.0]))
    target = torch.randint(columns, (rows,), generator=generator)
    soft = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    soft[torch.rand(rows, columns, generator=generator) < 0.3] = 0.0
    soft[torch.arange(rows), target] += 0.1
    return logits, target, soft / soft.sum(1, keepdim=True)


def gradient(function, logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


@quick
@given(batches())
def test_everything_reduces_to_cross_entropy(batch):
    logits, target, soft = batch
    ones = torch.ones(logits.shape[1], dtype=torch.float64)
    for y in (target, soft):
        expected = losses.cross_entropy(logits, y)
        torch.testing.assert_close(losses.focal_loss(logits, y, gamma=0.0), expected)
        torch.testing.assert_close(losses.balanced_cross_entropy(logits, y, weight=3 * ones), expected)
        torch.testing.assert_close(losses.soft_distillation_loss(logits, logits.flip(0), y, weight=0.0), expected)
        for convention in ("szegedy", "timm_mixup", "tensorflow", "thuml"):
            torch.testing.assert_close(losses.label_smoothing_cross_entropy(logits, y, smoothing=0.0, convention=convention), expected)
    torch.testing.assert_close(
        losses.asymmetric_single_label_loss(logits, target, gamma_negative=0, gamma_positive=0, smoothing=0), losses.cross_entropy(logits, target)
    )


@quick
@given(batches(), st.floats(0.0, 1.0), st.floats(0.0, 4.0))
def test_rows_of_gradients_sum_to_zero(batch, smoothing, gamma):
    """No loss of softmax(logits) can tell logits from logits plus a constant."""
    logits, target, soft = batch
    for y in (target, soft):
        for function in (
            losses.cross_entropy,
            lambda z, y: losses.focal_loss(z, y, gamma=gamma),
            lambda z, y: losses.label_smoothing_cross_entropy(z, y, smoothing=smoothing),
            lambda z, y: losses.soft_distillation_loss(z, z.detach().flip(1), y),
        ):
            sums = gradient(lambda z, function=function, y=y: function(z, y), logits).sum(1)
            torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-10)
            torch.testing.assert_close(function(logits + 7.0, y), function(logits, y), rtol=1e-10, atol=1e-10)


@quick
@given(batches(), st.floats(0.01, 1.0))
def test_the_best_prediction_is_the_target(batch, smoothing):
    logits, target, soft = batch
    smooth = (1 - smoothing) * soft + smoothing / logits.shape[1]
    least = losses.label_smoothing_cross_entropy(smooth.log(), soft, smoothing=smoothing)
    assert losses.label_smoothing_cross_entropy(logits, soft, smoothing=smoothing) >= least - 1e-12
    assert losses.label_smoothing_cross_entropy(logits, target, smoothing=smoothing, convention="davda54") >= -1e-12
    assert losses.distillation_divergence(logits, logits.flip(1)) >= -1e-12


@quick
@given(batches(), st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_more_focus_costs_less(batch, first, second):
    logits, target, _ = batch
    low, high = sorted((first, second))
    losses_of = [losses.focal_loss(logits, target, gamma=gamma, reduction="none") for gamma in (low, high)]
    assert (losses_of[0] >= losses_of[1] - 1e-12).all() and (losses_of[1] >= 0).all()


@quick
@given(batches(), st.sampled_from(["paper", "caffe", "kaiyang", "distance"]))
def test_centres_see_distances_only(batch, normalization):
    """Turning and moving features and centres together changes nothing; neither does the order of the batch."""
    features, target, _ = batch
    centers = torch.randn(features.shape[1], features.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.linalg.qr(centers)[0]
    value = losses.center_loss(features, target, centers, normalization=normalization)
    torch.testing.assert_close(losses.center_loss(features @ turn + 1, target, centers @ turn + 1, normalization=normalization), value)
    torch.testing.assert_close(losses.center_loss(features.flip(0), target.flip(0), centers, normalization=normalization), value)
    pairs, classes = losses.island_pairs(centers), len(centers)
    torch.testing.assert_close(losses.island_pairs(centers @ turn * 3), pairs)
    assert classes * (classes - 1) * (1 - 1 / (classes - 1)) - 1e-9 <= pairs <= 2 * classes * (classes - 1)


@quick
@given(batches(), st.floats(0.0, 1.0))
def test_regions_by_any_other_name(batch, margin):
    weights = batch[0].sigmoid()
    value = losses.region_biased_loss(weights, margin=margin)
    assert 0 <= value <= margin + 1
    torch.testing.assert_close(losses.region_biased_loss(weights.roll(1, 1), margin=margin, whole=0), value)
