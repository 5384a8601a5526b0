"""Center, island and sparse center loss: golden numbers, normalisations, and how centres follow."""

import copy

import pytest
import torch
from loss_goldens import equal, random
from torch import nn

from vtkernels import losses

C = torch.tensor([[0, 0], [1, 1], [-1, 0.5]], dtype=torch.float64)
X = torch.tensor([[0.5, 0.2], [1.5, 0.5], [0.9, 1.2]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1])
D = X - C[Y]
ISLAND = torch.tensor([[0.3, -0.2], [1, 1], [-1, 0.5]], dtype=torch.float64)


def with_centers(loss, centers):
    loss = loss.double()
    with torch.no_grad():
        loss.centers.copy_(centers)
    return loss


def test_normalisations():
    equal(losses.center_loss(X, Y, C), 0.42)
    equal(losses.center_loss(X, Y, C, normalization="kaiyang"), 0.28)
    # the published code clamps each of K - 1 zeros of a sample to 1e-12
    equal(losses.center_loss(X, Y, C, normalization="kaiyang") + 2e-12, 0.280000000002, atol=1e-15)
    equal(losses.center_loss(X, Y, C, normalization="caffe"), 0.42 / 3)
    equal(losses.center_loss(X, Y, C, normalization="distance"), D.norm(dim=1).mean())


@pytest.mark.parametrize(("normalization", "dx"), [("paper", D), ("caffe", D / 3), ("kaiyang", 2 * D / 3), ("distance", D / D.norm(dim=1, keepdim=True) / 3)])
def test_gradients(normalization, dx):
    x, c = X.clone().requires_grad_(), C.clone().requires_grad_()
    losses.center_loss(x, Y, c, normalization=normalization).backward()
    equal(x.grad, dx)
    equal(c.grad, -torch.zeros_like(C).index_add(0, Y, dx))
    assert (c.grad[2] == 0).all()
    # the centre of a class itself is where the distance has no slope
    at = C[Y].clone().requires_grad_()
    losses.center_loss(at, Y, C, normalization=normalization).backward()
    assert (at.grad == 0).all()


def test_the_papers_update():
    loss = with_centers(losses.CenterLoss(3, 2, alpha=0.25), C)
    assert not list(loss.parameters())
    equal(loss(X, Y), 0.42)
    expected = C.clone()
    expected[0] -= 0.25 * (C[0] - X[0]) / 2
    expected[1] -= 0.25 * ((C[1] - X[1]) + (C[1] - X[2])) / 3
    equal(loss.centers, expected)
    # in evaluation nothing moves, and nobody comes: an absent class stays as it is
    loss.eval()(X, Y)
    equal(loss.centers, expected)
    loss.train()(X[:0], Y[:0])
    equal(loss.centers, expected)


def test_features_that_overflowed_leave_the_centres_alone():
    loss = with_centers(losses.CenterLoss(3, 2), C)
    bad = X.clone()
    bad[1] = torch.inf
    assert loss(bad, Y).isinf()
    # the other class of the batch has moved
    assert loss.centers.isfinite().all() and torch.equal(loss.centers[1:], C[1:]) and not torch.equal(loss.centers[0], C[0])


def test_a_counted_parameter_takes_the_papers_step():
    loss = with_centers(losses.CenterLoss(3, 2, update="counted", weight=0.003), C)
    running = with_centers(losses.CenterLoss(3, 2, alpha=0.5, weight=0.003), C)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    for seed in range(3):
        x = random(5, 2, seed=seed).requires_grad_()
        y = torch.tensor([0, 2, 2, 0, 2])
        # the order of a GradScaler: the loss is scaled, gradients are divided
        (1024.0 * loss(x, y)).backward()
        loss.centers.grad /= 1024.0
        equal(x.grad / 1024.0, 0.003 * (x.detach() - loss.centers[y].detach()))
        optimizer.step()
        optimizer.zero_grad()
        running(x, y)
        equal(loss.centers.detach(), running.centers)
    equal(loss.centers[1].detach(), C[1])


@pytest.mark.parametrize("normalization", ["paper", "caffe", "kaiyang", "distance"])
def test_the_gradient_of_the_parameter_is_that_of_the_loss_without_its_weight(normalization):
    c = C.clone().requires_grad_()
    losses.center_loss(X, Y, c, normalization=normalization).backward()
    for weight in (0.0, 0.01, 1.0):
        loss = with_centers(losses.CenterLoss(3, 2, normalization, update="gradient", weight=weight), C)
        value = loss(X, Y)
        equal(value, weight * losses.center_loss(X, Y, C, normalization=normalization))
        value.backward()
        equal(loss.centers.grad, c.grad)


def test_island_pairs():
    equal(losses.island_pairs(ISLAND), 3.7752209848153564)
    equal(losses.island_pairs(torch.eye(5, dtype=torch.float64) * 3), 20.0)
    # the corners of a simplex are as far apart as directions can be
    corners = torch.eye(5, dtype=torch.float64) - 0.2
    equal(losses.island_pairs(corners), 20 * (1 - 1 / 4))
    c = corners.clone().requires_grad_()
    losses.island_pairs(c).backward()
    equal(c.grad, torch.zeros_like(c))
    assert losses.island_pairs(random(5, 3)) > 20 * (1 - 1 / 4)
    equal(losses.island_pairs(ISLAND[:1]), 0.0)


def test_gradient_of_island_pairs():
    c = ISLAND.clone().requires_grad_()
    losses.island_pairs(c).backward()
    unit = ISLAND / ISLAND.norm(dim=1, keepdim=True)
    for j in range(3):
        others = [k for k in range(3) if k != j]
        slope = sum(unit[k] - (unit[k] @ unit[j]) * unit[j] for k in others)
        equal(c.grad[j], 2 * slope / ISLAND[j].norm())


def test_island_loss():
    value = losses.island_loss(X, Y, ISLAND)
    equal(value, losses.center_loss(X, Y, ISLAND) + 10 * 3.7752209848153564)
    loss = with_centers(losses.IslandLoss(3, 2), ISLAND)
    equal(loss(X, Y), 0.01 * value)
    c = ISLAND.clone().requires_grad_()
    losses.island_pairs(c).backward()
    center = with_centers(losses.CenterLoss(3, 2), ISLAND)
    center(X, Y)
    equal(loss.centers, center.centers - 0.5 * 10 / 2 * c.grad / 2)
    loss = with_centers(losses.IslandLoss(3, 2, update="gradient"), ISLAND)
    loss(X, Y).backward()
    (gradient,) = torch.autograd.grad(losses.island_loss(X, Y, c), c)
    equal(loss.centers.grad, gradient)


def test_centres_of_no_direction_are_refused():
    with pytest.raises(ValueError, match=r"island_pairs: centers\[0\] must have a direction, got a vector of zeros; start from random centres"):
        losses.island_loss(X, Y, C)


def test_sparse_center_loss():
    a = random(3, 2).sigmoid()
    x, c, attention = (tensor.clone().requires_grad_() for tensor in (X, C, a))
    value = losses.sparse_center_loss(x, Y, c, attention)
    equal(value, (a * D**2).sum() / 6)
    value.backward()
    equal(x.grad, a * D / 3)
    equal(attention.grad, D**2 / 6)
    equal(losses.sparse_center_loss(X, Y, C, torch.ones_like(X)), losses.center_loss(X, Y, C, normalization="caffe"))
    equal(losses.sparse_center_loss(X, Y, C, torch.ones_like(X), reduction="sum"), losses.center_loss(X, Y, C))
    for weight in (0.0, 0.01):
        loss = with_centers(losses.SparseCenterLoss(3, 2, weight=weight), C)
        loss(X, Y, a).backward()
        step = torch.stack((-(a * D)[0] / 2, -(a * D)[1:].sum(0) / 3, torch.zeros(2, dtype=torch.float64)))
        equal(loss.centers.grad, step)
    for reduction in ("mean", "sum"):
        loss = with_centers(losses.SparseCenterLoss(3, 2, update="gradient", reduction=reduction), C)
        loss(X, Y, a).backward()
        (gradient,) = torch.autograd.grad(losses.sparse_center_loss(X, Y, c, a, reduction=reduction), c)
        equal(loss.centers.grad, gradient)


def test_center_attention():
    net = losses.CenterAttention(in_features=4 * 3 * 2, dim=4, hidden=(8, 6, 5))
    attention = net(random(7, 4, 3, 2).float())
    assert attention.shape == (7, 4) and ((attention > 0) & (attention < 1)).all()
    losses.SparseCenterLoss(3, 4)(random(7, 4).float(), torch.arange(7) % 3, attention).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    # the second of each pair
    with torch.no_grad():
        net.head.bias.view(4, 2)[:, 1] += 100.0
    assert (net(random(7, 4, 3, 2).float()) > 0.99).all()
    with torch.device("meta"):
        published = sum(parameter.numel() for parameter in losses.CenterAttention().parameters())
    hidden = (3584, 512, 64)
    assert published == sum(a * b + b + 2 * b for a, b in zip((25088, *hidden[:2]), hidden, strict=True)) + 64 * 1024 + 1024


def test_checkpoints_carry_centres():
    for kind in (losses.CenterLoss, losses.IslandLoss, losses.SparseCenterLoss):
        for update in ("paper", "counted", "gradient"):
            loss = kind(3, 2, update=update, seed=1)
            other = kind(3, 2, update=update)
            assert not torch.equal(loss.centers, other.centers)
            other.load_state_dict(loss.state_dict())
            assert torch.equal(loss.centers, other.centers)
            assert torch.equal(copy.deepcopy(loss).centers, loss.centers)
    # a buffer's centres fit a parameter
    losses.CenterLoss(3, 2, update="gradient").load_state_dict(losses.CenterLoss(3, 2).state_dict())


def test_features_come_together():
    """Center loss beside cross-entropy on two classes: what is left of the spread within them shrinks."""
    net, loss = nn.Linear(4, 2), losses.CenterLoss(2, 2, "caffe", weight=0.1)
    head, x, y = nn.Linear(2, 2), random(40, 4).float(), torch.arange(40) % 2
    x += 2 * y[:, None]
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.05)
    for _ in range(60):
        features = net(x)
        (losses.cross_entropy(head(features), y) + loss(features, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    means = torch.stack([features[y == k].mean(0) for k in range(2)]).detach()
    torch.testing.assert_close(loss.centers, means, rtol=0, atol=0.05)
