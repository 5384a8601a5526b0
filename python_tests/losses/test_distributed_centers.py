"""Centres of classes on two processes: one and the same step everywhere, that of the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import on_two_processes, processes  # noqa: F401

from vtkernels import losses

GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(9, 5, generator=GENERATOR, dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 0, 2, 2, 1, 2, 2])
# shares of different sizes, with a class that only one process sees
SHARES = (slice(0, 4), slice(4, 9))
KINDS = {"center": losses.CenterLoss, "island": losses.IslandLoss, "sparse": losses.SparseCenterLoss}


def attention(kind, rows):
    return [X[rows].sigmoid()] if kind == "sparse" else []


def centers_after(kind, update, rows, alone=False):
    """The centres after one call, or their gradient."""
    loss = KINDS[kind](4, 5, update=update, seed=3).double()
    if alone:
        loss.over_processes = lambda tensor: tensor
    value = loss(X[rows], Y[rows], *attention(kind, rows))
    if update == "paper":
        return loss.centers
    value.backward()
    return loss.centers.grad


@pytest.mark.parametrize("update", ["paper", "counted", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
@on_two_processes
def test_the_step_is_that_of_the_whole_batch(rank, kind, update):
    found = centers_after(kind, update, SHARES[rank])
    gathered = [torch.empty_like(found) for _ in SHARES]
    torch.distributed.all_gather(gathered, found)
    assert torch.equal(*gathered)
    torch.testing.assert_close(found, centers_after(kind, update, slice(None), alone=True), rtol=1e-12, atol=1e-12)


class Trained(nn.Module):
    def __init__(self, update):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(5, 3)
        self.loss = losses.CenterLoss(3, 3, "caffe", update=update)

    def forward(self, x, y):
        features = self.net(x)
        return losses.cross_entropy(features, y) + self.loss(features, y)


@pytest.mark.parametrize("update", ["paper", "counted", "gradient"])
@on_two_processes
def test_inside_distributed_data_parallel(rank, update):
    """With equal shares three steps of both processes are three steps of one."""
    model, alone = DistributedDataParallel(Trained(update).double()), Trained(update).double()
    alone.loss.over_processes = lambda tensor: tensor
    rows = slice(4 * rank, 4 * rank + 4)
    both = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (model, alone)]
    for _ in range(3):
        model(X[rows], Y[rows]).backward()
        alone(X[:8], Y[:8]).backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], value, rtol=1e-12, atol=1e-12)


@on_two_processes
def test_a_process_without_samples_takes_part(rank):
    loss = losses.CenterLoss(4, 5).double()
    before = loss.centers.clone()
    rows = slice(0, 9 if rank == 0 else 0)
    loss(X[rows], Y[rows])
    assert torch.equal(loss.centers[3], before[3]) and not torch.equal(loss.centers[:3], before[:3])
    gathered = [torch.empty_like(before) for _ in SHARES]
    torch.distributed.all_gather(gathered, loss.centers)
    assert torch.equal(*gathered)
