"""FGSM and PGD: inside the ball, uphill, and without a trace in the model."""

import pytest
import torch
from torch import nn

from vtkernels.data import fgsm, pgd


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 4)).eval()


@pytest.fixture
def batch():
    return torch.rand(8, 3, 4, 5), torch.arange(8) % 4


def losses(model, images, targets):
    return nn.functional.cross_entropy(model(images), targets, reduction="none")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_stays_in_the_ball_and_climbs(model, batch, norm, random_start):
    images, targets = batch
    epsilon = 0.1 if norm == "linf" else 0.5
    with torch.no_grad():
        found = pgd(model, images, targets, epsilon, norm=norm, random_start=random_start)
    move = (found - images).flatten(1)
    lengths = move.abs().amax(dim=1) if norm == "linf" else move.norm(dim=1)
    assert (lengths <= epsilon * (1 + 1e-5)).all() and found.min() >= 0 and found.max() <= 1
    assert (losses(model, found, targets) > losses(model, images, targets)).all()
    assert all(parameter.grad is None for parameter in model.parameters()) and not images.requires_grad and not found.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_frozen_parameters_do_not_matter(model, batch, training):
    model.train(training)
    model[2].momentum = 0.0
    free = pgd(model, *batch, 0.1, random_start=False)
    model.requires_grad_(False)
    assert torch.equal(pgd(model, *batch, 0.1, random_start=False), free) and model.training == training
    with pytest.raises(ValueError, match="epsilon"):
        pgd(model, *batch, float("nan"))


def test_linear_model_by_hand():
    weight = torch.tensor([[1.0, -2.0, 0.0]])
    images = torch.tensor([[0.5, 0.5, 0.5], [0.98, 0.01, 0.5]])

    def height(scores, targets):
        return scores[:, 0]

    found = fgsm(lambda x: x @ weight.T, images, torch.zeros(2), 0.1, loss=height)
    # up where the weight is positive, down where negative, still where it is 0; clipped to [0, 1]
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.4, 0.5], [1.0, 0.0, 0.5]]))
    down = fgsm(lambda x: x @ weight.T, images, torch.zeros(2), 0.1, loss=height, targeted=True)
    torch.testing.assert_close(down, torch.tensor([[0.4, 0.6, 0.5], [0.88, 0.11, 0.5]]))
    sphere = pgd(lambda x: x @ weight.T, images[:1], torch.zeros(1), 0.1, norm="l2", random_start=False, loss=height)
    torch.testing.assert_close(sphere - images[:1], 0.1 * weight / weight.norm())


def test_no_radius_and_no_gradient_move_nothing(model, batch):
    images, targets = batch
    assert torch.equal(pgd(model, images, targets, 0.0), images)
    assert torch.equal(pgd(lambda x: x.flatten(1)[:, :4] * 0, images, targets, 0.1, norm="l2", random_start=False), images)
    assert pgd(model, images[:0], targets[:0], 0.1).shape == (0, 3, 4, 5)


def test_best_iterates_and_restarts_only_help(model, batch):
    images, targets = batch

    def found(**options):
        # steps too short to arrive, on a sphere: where one starts matters
        best = pgd(model, images, targets, 1.0, step=0.1, steps=3, norm="l2", generator=torch.Generator().manual_seed(2), **options)
        return losses(model, best, targets).detach()

    last, best, restarted = found(), found(use_best=True), found(use_best=True, restarts=3)
    assert (best >= last).all() and (restarted >= best).all() and (restarted > last).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_of_each_image_is_its_own(model, batch, norm):
    images, targets = batch

    def found(rows):
        generators = [torch.Generator().manual_seed(number) for number in range(len(images))[rows]]
        return pgd(model, images[rows], targets[rows], 0.1, norm=norm, steps=0, generator=generators)

    whole = found(slice(None))
    assert torch.equal(found(slice(1, 3)), whole[1:3]) and not torch.equal(whole, images)
    assert found(slice(0, 0)).shape == images[:0].shape
    with pytest.raises(ValueError, match=f"one for each of {len(images)} images, got 1"):
        pgd(model, images, targets, 0.1, generator=[torch.Generator()])


def test_mode_of_the_model_is_its_owners(model, batch):
    before = model[2].running_mean.clone()
    pgd(model, *batch, 0.1)
    assert torch.equal(model[2].running_mean, before)
    model.train()
    pgd(model, *batch, 0.1)
    assert model.training and not torch.equal(model[2].running_mean, before)


def test_arguments_are_checked(model, batch):
    images, targets = batch
    with pytest.raises(ValueError, match="let the model normalise"):
        pgd(model, images * 3, targets, 0.1)
    with pytest.raises(ValueError, match="'linf' or 'l2'"):
        pgd(model, images, targets, 0.1, norm="l1")
    with pytest.raises(ValueError, match="restarts be 1 without a random start"):
        pgd(model, images, targets, 0.1, restarts=2, random_start=False)
