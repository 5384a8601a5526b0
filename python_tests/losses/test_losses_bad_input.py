"""What losses refuse, and in which words."""

import math

import pytest
import torch

from vtkernels import losses

X, Y = torch.zeros(3, 4), torch.tensor([0, 3, 1])
CENTERS = torch.ones(4, 4)
OUTSIDE = torch.tensor([0, 4, 1])
of_classes = [
    losses.cross_entropy,
    losses.balanced_cross_entropy,
    losses.label_smoothing_cross_entropy,
    losses.focal_loss,
    losses.binary_cross_entropy,
    losses.asymmetric_single_label_loss,
    losses.sigmoid_focal_loss,
]
by_name = pytest.mark.parametrize("function", of_classes, ids=lambda function: function.__name__)
BAD = [
    ((X[0], Y), ValueError, r"logits must have 2 dimensions \[batch, classes\], got \[4\]"),
    ((X.long(), Y), TypeError, r"logits must have dtype float16, bfloat16, float32 or float64, got torch.int64; try logits.float\(\)"),
    ((X[:, :0], Y), ValueError, r"logits must have at least one class, got \[3, 0\]"),
    (([1.0], Y), TypeError, r"logits must be a tensor \[batch, classes\], got list"),
    ((X, [0, 3, 1]), TypeError, "target must be a tensor, got list"),
    ((X, Y.int()), TypeError, r"target must have dtype int64 \(classes\), got torch.int32; try target.long\(\)"),
    ((X, Y[:2]), ValueError, r"target must have shape \[3\], got \[2\]; one class for each sample"),
    ((X, Y[:, None]), ValueError, r"target must have shape \[3\], got \[3, 1\]"),
    ((X, X[:, :3]), ValueError, r"target must have shape \[3, 4\], got \[3, 3\]; one number for each of logits; classes must be int64"),
    ((X, Y.float()), ValueError, r"target must have shape \[3, 4\], got \[3\]"),
    ((X, X.double()), TypeError, "target must have dtype torch.float32 beside logits of torch.float32, got torch.float64"),
    ((X, Y.to("meta")), ValueError, r"target must be on the device of logits \(cpu\), got meta"),
    ((X, OUTSIDE), ValueError, r"target\[1\] must lie between 0 and 3, got 4"),
    ((X, Y - 3), ValueError, r"target\[0\] must lie between 0 and 3, got -"),
]


@by_name
@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_logits_and_targets(function, given, error, message):
    with pytest.raises(error, match=f"{function.__name__}: {message}"):
        function(*given)


def refused(error, message, function, *inputs, **options):
    with pytest.raises(error, match=message):
        function(*inputs, **options)


def test_options():
    refused(ValueError, r"cross_entropy: reduction must be one of mean, sum, none, got 'batchmean'", losses.cross_entropy, X, Y, reduction="batchmean")
    refused(ValueError, "balanced_cross_entropy: reduction must be one of weighted_mean", losses.balanced_cross_entropy, X, Y, reduction="max")
    refused(ValueError, r"balanced_cross_entropy: weight must have shape \[4\], got \[3\]", losses.balanced_cross_entropy, X, Y, weight=torch.ones(3))
    refused(TypeError, "focal_loss: alpha must be a tensor, got float", losses.focal_loss, X, Y, alpha=0.25)
    refused(ValueError, "focal_loss: gamma must be a number of at least 0, got -1.0", losses.focal_loss, X, Y, gamma=-1.0)
    refused(ValueError, "focal_loss: gamma must be a number of at least 0, got nan", losses.focal_loss, X, Y, gamma=math.nan)
    refused(ValueError, "sigmoid_focal_loss: alpha must be a number of at least 0 and at most 1, got 2", losses.sigmoid_focal_loss, X, X, alpha=2)
    smooth = losses.label_smoothing_cross_entropy
    refused(ValueError, "smoothing must be a number of at least 0 and at most 1, got 1.5", smooth, X, Y, smoothing=1.5)
    refused(ValueError, "convention must be one of szegedy, timm_mixup, tensorflow, davda54, thuml, got 'keras'", smooth, X, Y, convention="keras")
    refused(ValueError, "reduction must be mean with sum_classes=True", losses.binary_cross_entropy, X, Y, sum_classes=True, reduction="sum")
    refused(TypeError, "target must have dtype float16", losses.soft_target_cross_entropy, X, Y[:, None])
    refused(ValueError, r"counts must be at least one sample for each class, got \[1.0, 0.0\]", losses.inverse_frequency_weights, [1, 0])
    refused(ValueError, "beta must be below 1, got 1.0; inverse_frequency_weights is the limit", losses.effective_number_weights, [1, 2], 1.0)
    refused(ValueError, "prior must lie between 0 and 1, got 1.0", losses.focal_prior_bias, 1.0)


def test_teachers():
    divergence = losses.distillation_divergence
    refused(ValueError, r"distillation_divergence: teacher must have shape \[3, 4\], got \[3, 5\]", divergence, X, torch.zeros(3, 5))
    refused(ValueError, "temperature must be a number above 0, got 0", divergence, X, X, temperature=0)
    refused(ValueError, "scaling must be one of hinton, deit, plain, got 'batchmean'; hinton is the paper's", divergence, X, X, scaling="batchmean")
    refused(ValueError, "kind must be one of hard, soft, none, got 'both'", losses.DeitDistillationLoss, kind="both")
    refused(ValueError, "unlabelled must have the 4 classes of labelled, got 5", losses.noisy_student_loss, X, Y, torch.zeros(3, 5), Y)
    refused(ValueError, r"cosub_loss: second must have shape \[3, 4\], got \[2, 4\]", losses.cosub_loss, X, X[:2], Y)


def test_centres():
    for function in (losses.center_loss, losses.island_loss):
        refused(ValueError, "features must have the 4 channels of the centres, got 3", function, X[:, :3], Y, CENTERS)
        refused(TypeError, r"target must have dtype int64 \(classes\), got torch.float32", function, X, X, CENTERS)
        refused(ValueError, r"target\[1\] must lie between 0 and 3, got 4", function, X, OUTSIDE, CENTERS)
    refused(ValueError, "normalization must be one of paper, caffe, kaiyang, distance, got 'mean'", losses.CenterLoss, 4, 4, "mean")
    refused(ValueError, "CenterLoss: update must be one of paper, counted, gradient, got 'ema'", losses.CenterLoss, 4, 4, update="ema")
    refused(ValueError, "CenterLoss: num_classes must be an int of at least 1, got 0", losses.CenterLoss, 0, 4)
    refused(ValueError, "CenterLoss: alpha must be a number of at least 0 and at most 1, got 2", losses.CenterLoss, 4, 4, alpha=2)
    refused(ValueError, r"attention must have shape \[3, 4\], got \[3, 1\]", losses.sparse_center_loss, X, Y, CENTERS, X[:, :1])
    refused(ValueError, "CenterAttention: a map must have 8 numbers, got 4", losses.CenterAttention(8, 2, (4, 3, 2)), X)
    # a refused batch leaves the centres as they were
    loss = losses.CenterLoss(4, 4)
    before = loss.centers.clone()
    refused(ValueError, r"target\[1\] must lie between 0 and 3, got 4", loss, X, OUTSIDE)
    assert torch.equal(loss.centers, before)


def test_others():
    refused(ValueError, r"weights must have at least two regions, got \[3, 1\]; the whole image and one crop", losses.region_biased_loss, X[:, :1])
    refused(ValueError, "whole must be one of the 4 regions, got 4", losses.region_biased_loss, X, whole=4)
    refused(ValueError, "normalize must be one of softmax, sigmoid", losses.RegionAttention, normalize="tanh")
    refused(ValueError, "RegionAttention: features must have 5 channels, got 4", losses.RegionAttention(5), X[None])
    refused(ValueError, "covariance must be one of full, diagonal", losses.gccs_loss, X, Y, covariance="tied")
    refused(ValueError, "variance must be a number above 0, got 0", losses.gccs_loss, X, Y, variance=0)
    refused(ValueError, r"laplace_loss: scale must have shape \[3, 4\], got \[3\]", losses.laplace_loss, X, X, X[:, 0])
