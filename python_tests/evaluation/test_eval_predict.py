"""Predictions over whole sets: each sample once and in order, and models left as they were."""

import functools

import pytest
import torch
from evaluation_cases import Linear, digits, loader_of, whole
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vtkernels import evaluation as ev
from vtkernels.data import pgd


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


def test_the_model_keeps_its_own_precision():
    pytest.importorskip("sklearn")
    model = Linear()
    exact = whole(model, digits()).logits
    assert (whole(model.double(), digits()).logits - exact).abs().max() < 1e-4 and whole(model, digits()).logits.dtype == torch.float64
    torch.testing.assert_close(whole(model.bfloat16(), digits()).logits, exact, rtol=0.1, atol=0.1)


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
        (lambda: ev.evaluate(Linear(1), [(IMAGES, torch.zeros(4).long())]), ValueError, "two classes"),
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
