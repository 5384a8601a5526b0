"""GCCS, region-biased and regression losses."""

import pytest
import torch
from loss_goldens import equal, random
from torch import nn

from vtkernels import losses


def of_target(samples=4000, classes=3, mean=7.0, variance=2.0, seed=0):
    """Outputs whose mean and covariance in each class are exactly those of the target distribution."""
    outputs = []
    for label in range(classes):
        x = random(samples, classes, seed=seed + label)
        x = x - x.mean(0)
        x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
        outputs.append(x * variance**0.5 + mean * torch.eye(classes, dtype=torch.float64)[label])
    return torch.cat(outputs), torch.arange(classes).repeat_interleave(samples)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_gccs_of_its_target_distribution(covariance):
    options = {"mean": 7.0, "variance": 2.0, "covariance": covariance}
    outputs, target = of_target()
    equal(losses.gccs_loss(outputs, target, kurtosis_weight=0.0, **options), 0.0, atol=1e-9)
    # the kurtosis is left, which of 4000 normal numbers is about 3
    assert losses.gccs_loss(outputs, target, kurtosis_weight=1.0, **options).abs() < 0.5
    shift = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    shifted = outputs + shift * (target == 1)[:, None]
    equal(losses.gccs_loss(shifted, target, kurtosis_weight=0.0, **options), 9.0 / 2.0, atol=1e-9)
    assert (outputs.argmax(1) == target).double().mean() > 0.99


def test_gccs_by_hand():
    x, y = random(12, 3) * 2, torch.tensor([0] * 5 + [2] * 7)
    total, diagonal, tails = 0.0, 0.0, 0.0
    for label in (0, 2):
        rows = x[y == label]
        gap = (10 * torch.eye(3, dtype=torch.float64)[label] - rows.mean(0)).square().sum() / 4
        covariance = torch.cov(rows.T)
        total = total + (torch.log(4**3 / torch.det(covariance)) - 3 + torch.trace(covariance) / 4 + gap)
        ratio = rows.var(0) / 4
        diagonal = diagonal + (-ratio.log() - 1 + ratio).sum() + gap
        d = rows - rows.mean(0)
        tails = tails + ((d**4).mean(0) / (d**2).mean(0) ** 2).mean() - 3
    equal(losses.gccs_loss(x, y, mean=10, variance=4, kurtosis_weight=0.0), total, atol=1e-9)
    equal(losses.gccs_loss(x, y, mean=10, variance=4, kurtosis_weight=0.2), total + 0.2 * tails, atol=1e-9)
    equal(losses.GccsLoss(mean=10, variance=4, kurtosis_weight=0.0, covariance="diagonal")(x, y), diagonal, atol=1e-9)


def test_gccs_needs_samples():
    x = random(6, 3)
    message = r"gccs_loss: class 1 must have at least 4 samples in the batch for covariance='full', got 1; covariance='diagonal' needs two"
    with pytest.raises(ValueError, match=message):
        losses.gccs_loss(x, torch.tensor([0, 0, 0, 0, 0, 1]))
    with pytest.raises(ValueError, match="class 1 must have at least 2 samples in the batch for covariance='diagonal', got 1; draw batches with several"):
        losses.gccs_loss(x, torch.tensor([0, 0, 0, 0, 0, 1]), covariance="diagonal")
    # outputs that have collapsed still have a loss and gradients
    flat = torch.ones(8, 3, requires_grad=True)
    for covariance in ("full", "diagonal"):
        loss = losses.gccs_loss(flat, torch.zeros(8, dtype=torch.int64), covariance=covariance)
        (gradient,) = torch.autograd.grad(loss, flat)
        assert loss.isfinite() and gradient.isfinite().all()


def test_gccs_separates_classes():
    torch.manual_seed(0)
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    x[torch.arange(60), y] += 2.0
    net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        loss = losses.gccs_loss(net(x), y, mean=5.0, covariance="diagonal")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() > 0.9


def test_region_biased():
    # a margin kept by far, one missed by 0.01, and one missed by far
    weights = torch.tensor([[0.1, 0.5, 0.2], [0.3, 0.31, 0.3], [0.2, 0.1, 0.6]], dtype=torch.float64, requires_grad=True)
    loss = losses.region_biased_loss(weights)
    equal(loss, (0.0 + 0.01 + 0.42) / 3)
    loss.backward()
    equal(weights.grad, torch.tensor([[0, 0, 0], [0, -1, 1], [-1, 0, 1]], dtype=torch.float64) / 3)
    equal(losses.RegionBiasedLoss(margin=0.1, whole=0)(weights.detach()), (0.0 + 0.09 + 0.0) / 3)
    ties = torch.tensor([[0.3, 0.3, 0.3]], requires_grad=True)
    losses.region_biased_loss(ties).backward()
    assert ties.grad[0, 2] == 1 and sorted(ties.grad[0, :2].tolist()) == [-1, 0]


@pytest.mark.parametrize("normalize", ["softmax", "sigmoid"])
def test_region_attention(normalize):
    net, features = losses.RegionAttention(5, 4, normalize).double(), random(2, 6, 5)
    found = net(features)
    for image in range(2):
        a = (features[image] @ net.own.weight[0] + net.own.bias).sigmoid()
        a = a.softmax(0) if normalize == "softmax" else a
        mean = (a[:, None] * features[image]).sum(0) / a.sum()
        v = torch.cat((features[image], mean.expand(6, 5)), 1)
        b = (v @ net.relation.weight[0] + net.relation.bias).sigmoid()
        b = b.softmax(0) if normalize == "softmax" else b
        out = ((a * b)[:, None] * v).sum(0) / (a * b).sum()
        equal(found.logits[image], net.head(out))
        equal(found.weights[image], a)
    # the order of the crops does not matter
    swapped = net(features[:, [1, 0, 2, 3, 4, 5]])
    equal(swapped.logits, found.logits)
    (losses.cross_entropy(found.logits, torch.tensor([0, 1])) + losses.region_biased_loss(found.weights, margin=1.0)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_l1():
    prediction, target = torch.tensor([[0.2, 1.5], [2, 0.1]], dtype=torch.float64), torch.tensor([[1, 2], [3, 0]])
    equal(losses.l1_loss(prediction, target), 0.6)
    equal(losses.L1Loss(reduction="sum")(prediction, target), 2.4)
    with pytest.raises(ValueError, match=r"l1_loss: target must have shape \[2, 2\], got \[2\]; torch would broadcast it"):
        losses.l1_loss(prediction, target[0])


def test_laplace():
    prediction, target, scale = random(3, 2), random(3, 2, seed=1), random(3, 2, seed=2)
    width = torch.nn.functional.softplus(scale) + 1e-6
    likelihood = torch.distributions.Laplace(prediction, width).log_prob(target)
    equal(losses.laplace_loss(prediction, target, scale), -likelihood.mean())
    equal(losses.LaplaceLoss(reduction="none")(prediction, target, scale), -likelihood)
    # of one width it is L1
    flat = torch.zeros_like(scale)
    width = torch.tensor(2.0, dtype=torch.float64).log() + 1e-6
    equal(losses.laplace_loss(prediction, target, flat), losses.l1_loss(prediction, target) / width + (2 * width).log())
