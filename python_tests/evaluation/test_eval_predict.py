"""Predictions over whole sets: each sample once, on one process and on two, and models left as they were."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from two_processes import on_two_processes, processes  # noqa: F401

from vtkernels import evaluation as ev
from vtkernels.data import create_dataset, create_loader, pgd


class Linear(nn.Module):
    """Logits of 8 x 8 pixels, with what evaluation mode must switch."""

    def __init__(self, classes=10):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(3 * 64), nn.Dropout(0.5), nn.Linear(3 * 64, classes)

    def forward(self, images):
        return self.head(self.drop(self.norm(images.flatten(1))))


def digits(count=37):
    from vtkernels.data.datasets import Subset

    return Subset(create_dataset("digits", "test", size=8), range(count))


def loader_of(dataset, batch_size=8, **options):
    return create_loader(dataset, batch_size, statistics=dataset.statistics, **options)


def whole(model, dataset, **options):
    return ev.predict(model, loader_of(dataset, rank=0, world=1), gather=False, **options)


def test_all_samples_in_order_and_the_model_as_it_was():
    pytest.importorskip("sklearn")
    model, dataset, seen = Linear(), digits(), []
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ev.predict(model, loader_of(dataset), progress=seen.append)
    assert found.targets.tolist() == dataset.targets.tolist() and found.logits.shape == (37, 10) and sum(seen) == 37
    again = ev.predict(model, loader_of(dataset, 37))
    torch.testing.assert_close(again.logits, found.logits)
    assert model.training and model.drop.training and not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not found.logits.requires_grad


def test_results_do_not_depend_on_the_order():
    pytest.importorskip("sklearn")
    found = ev.predict(Linear(), loader_of(digits()))
    order = torch.randperm(len(found))
    shuffled = ev.Predictions(found.logits[order], found.targets[order])
    first, second = ev.score(found), ev.score(shuffled)
    assert first.metrics == pytest.approx(second.metrics, abs=1e-12)
    assert torch.equal(first.confusion, second.confusion)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_autocast(precision):
    pytest.importorskip("sklearn")
    model = Linear()
    exact, rounded = (whole(model, digits(), precision=name) for name in ("float32", precision))
    assert rounded.logits.dtype == torch.float32 and not torch.equal(exact.logits, rounded.logits)
    torch.testing.assert_close(exact.logits, rounded.logits, rtol=0.05, atol=0.05)


def test_attacks_change_the_images_first():
    pytest.importorskip("sklearn")
    images, targets = torch.rand(40, 3, 8, 8), torch.randint(10, (40,))
    batches = list(zip(images.split(16), targets.split(16), strict=True))
    model = Linear()
    plain = ev.predict(model, batches)
    attacked = ev.predict(model, batches, attack=functools.partial(pgd, epsilon=0.1, steps=3))
    assert ev.negative_log_likelihood(attacked.logits, targets) > ev.negative_log_likelihood(plain.logits, targets)
    unmoved = ev.predict(model, batches, attack=functools.partial(pgd, epsilon=0.0, steps=1))
    torch.testing.assert_close(unmoved.logits, plain.logits)
    assert all(parameter.grad is None for parameter in model.parameters())


@on_two_processes
def test_two_processes_find_what_one_does(rank):
    torch.manual_seed(0)
    model = Linear()
    # shares of equal length, of unequal length and number of batches, and an empty one
    for count, batch_size in ((36, 4), (37, 4), (9, 4), (1, 4), (33, 16)):
        dataset = digits(count)
        single = whole(model, dataset)
        shared = ev.predict(model, loader_of(dataset, batch_size))
        assert torch.equal(shared.targets, single.targets)
        torch.testing.assert_close(shared.logits, single.logits, rtol=1e-6, atol=1e-6)
        # the same logits are measured in every process
        everywhere = [None, None]
        torch.distributed.all_gather_object(everywhere, ev.score(shared).metrics)
        assert everywhere[0] == everywhere[1]
        assert everywhere[0]["top1"] == ev.score(single).metrics["top1"]


@on_two_processes
def test_padding_of_a_sampler_is_dropped(rank):
    torch.manual_seed(0)
    images, targets = torch.randn(13, 3, 8, 8), torch.arange(13) % 10
    dataset = TensorDataset(images, targets)
    # wrapped, and with an odd number of samples: the wrapper's own synchronisation would wait for ever
    model = DistributedDataParallel(Linear())
    for shuffle in (False, True):
        sampler = DistributedSampler(dataset, shuffle=shuffle)
        assert len(sampler) == 7
        found = ev.predict(model, DataLoader(dataset, batch_size=3, sampler=sampler))
        assert sorted(found.targets.tolist()) == sorted(targets.tolist())
    # a plain loader gives every process the whole set
    assert len(ev.predict(model, DataLoader(dataset, batch_size=3))) == 13
    several = torch.eye(10, dtype=torch.bool)[targets]
    mine = [(images[rank::2], several[rank::2])]
    found = ev.predict(model, mine, gather=True)
    assert torch.equal(found.targets, several)
    with pytest.raises(ValueError, match="gather must be told"):
        ev.predict(model, mine)
    with pytest.raises(ValueError, match="drop_last=True"):
        ev.predict(model, DataLoader(dataset, batch_size=3, sampler=DistributedSampler(dataset, drop_last=True)))


@on_two_processes
def test_a_sharded_model_keeps_step(rank):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model, plain = Linear(), Linear()
    plain.load_state_dict(model.state_dict())
    dataset = digits(9)
    single = whole(plain, dataset)
    # 5 and 4 samples: three batches and two
    shared = ev.predict(fully_shard(model), loader_of(dataset, 2))
    torch.testing.assert_close(shared.logits, single.logits, rtol=1e-5, atol=1e-6)


IMAGES = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ev.predict(Linear(), []), ValueError, "at least one batch"),
        (lambda: ev.predict(Linear(), [(IMAGES.byte(), torch.zeros(4).long())]), TypeError, "normalised floats"),
        (lambda: ev.predict(Linear(), [(IMAGES, torch.zeros(4, 10))]), ValueError, "soft targets are for training"),
        (lambda: ev.predict(Linear(), [(IMAGES, [1, 2, 3, 4])]), TypeError, "be tensors"),
        (lambda: ev.predict(nn.Identity(), [(IMAGES, torch.zeros(4).long())]), ValueError, r"answer with logits \[4, K\], got \[4, 3, 8, 8\]"),
        (lambda: ev.predict(Linear(), [(IMAGES, torch.zeros(2).long())]), ValueError, r"answer with logits \[2, K\]"),
        (lambda: ev.predict(Linear(), [], precision="half"), ValueError, "float32, bfloat16, float16"),
        (lambda: ev.predict(Linear(), DataLoader(TensorDataset(IMAGES), drop_last=True)), ValueError, "drop_last=True"),
        (lambda: ev.predict(Linear(1), [(IMAGES, torch.zeros(4).long())]) and ev.evaluate(Linear(1), [(IMAGES, torch.zeros(4).long())]), ValueError, "two classes"),
        (lambda: ev.evaluate(Linear(), [(IMAGES, torch.full((4,), -1))]), ValueError, "only negatives"),
        (lambda: ev.evaluate(Linear(), [(IMAGES, torch.zeros(4).long())], classes=("a", "b")), ValueError, "as many as the logits"),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_loaders_for_training_are_refused():
    pytest.importorskip("sklearn")
    dataset = digits()
    with pytest.raises(ValueError, match="a loader for training"):
        ev.predict(Linear(), loader_of(dataset, train=True))
    with pytest.raises(ValueError, match="drop_last=True"):
        ev.predict(Linear(), loader_of(dataset, drop_last=True))


def test_a_failure_leaves_the_model_in_its_mode():
    model = Linear().train()
    with pytest.raises(TypeError):
        ev.predict(model, [(IMAGES, None)])
    assert model.training and model.drop.training
