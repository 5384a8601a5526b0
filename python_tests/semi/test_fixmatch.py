"""FixMatch: who is sure, what is learnt from it, and the two views of the loader."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vtkernels.data import StreamTargets
from vtkernels.losses import FixMatchLoss, fixmatch_loss
from vtkernels.recipes import AugMix, RecipeError, WeakAndStrong, build, get_recipe
from vtkernels.train import FixMatchTask


def drawn(count: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


CLASSES = torch.tensor([0, 4, 2])


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95, 1.0])
def test_the_loss_is_the_formula(threshold):
    labelled, weak, strong = drawn(3, 0), drawn(21, 1), drawn(21, 2)
    expected = F.cross_entropy(labelled, CLASSES)
    for one, other in zip(weak, strong, strict=True):
        probability, best = one.softmax(0).max(0)
        if probability >= threshold:
            expected = expected + 0.5 * F.cross_entropy(other, best) / 21
    found = fixmatch_loss(labelled, CLASSES, weak, strong, threshold=threshold, weight=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_nothing_is_learnt_from_weak_views_or_unsure_ones():
    labelled, weak, strong = (drawn(count, seed).requires_grad_() for count, seed in ((3, 0), (21, 1), (21, 2)))
    fixmatch_loss(labelled, CLASSES, weak, strong).backward()
    sure = weak.detach().softmax(1).amax(1) >= 0.95
    assert weak.grad is None
    assert 0 < sure.sum() < 21
    assert torch.equal(strong.grad.abs().sum(1) > 0, sure)


def test_a_probability_at_the_threshold_is_sure():
    weak = torch.zeros(1, 2)
    assert fixmatch_loss(weak, torch.tensor([0]), weak, weak, threshold=0.5) > fixmatch_loss(weak, torch.tensor([0]), weak, weak, threshold=0.51)


def test_bad_input_is_refused():
    good = drawn(3, 0), CLASSES, drawn(4, 1), drawn(4, 2)
    with pytest.raises(ValueError, match="strong must have the shape of weak"):
        fixmatch_loss(*good[:3], drawn(5, 2))
    with pytest.raises(ValueError, match="threshold must .*got 1.5"):
        fixmatch_loss(*good, threshold=1.5)
    with pytest.raises(ValueError, match="weight must .*got -1"):
        fixmatch_loss(*good, weight=-1.0)
    with pytest.raises(TypeError, match="weak must have dtype"):
        fixmatch_loss(*good[:2], torch.ones(4, 5, dtype=torch.long), good[3])


class Sum(nn.Module):
    """Logits from mean colours."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, images):
        return self.head(images.mean((2, 3)))


def test_the_task_splits_one_forward_into_labels_and_two_views():
    generator = torch.Generator().manual_seed(3)
    images, targets = torch.randn(3 + 2 * 6, 3, 4, 4, generator=generator), StreamTargets(CLASSES, torch.full((6,), -1))
    task = FixMatchTask(Sum(), FixMatchLoss(threshold=0.3))
    outcome = task(images, targets)
    logits = task.model(images)
    torch.testing.assert_close(outcome.loss, fixmatch_loss(logits[:3], CLASSES, logits[3:9], logits[9:], threshold=0.3))
    assert outcome.logs["sure"] == (logits[3:9].softmax(1).amax(1) >= 0.3).float().mean()
    with pytest.raises(ValueError, match="unlabelled images must be two views of each of the 6 images, got 6"):
        task(images[:9], targets)
    assert set(task.evaluate(images[:3], CLASSES)) == {"loss", "top1", "top5"}


def test_the_recipe_gives_weak_and_strong_views_of_the_same_images():
    recipe = get_recipe("fixmatch")
    trainer = build(replace(recipe, data=replace(recipe.data, batch_size=8)))
    images, targets = next(iter(trainer.train_loader))
    assert images.shape == (8 + 2 * 7 * 8, 3, 32, 32)
    assert targets.unlabelled.tolist() == [-1] * 56
    weak, strong = targets.split(images)[1].chunk(2)
    other = weak.roll(1, 0)
    # views differ, and are nearer to each other than to those of other images
    assert (weak - strong).abs().mean() > 0.1
    assert (weak - strong).abs().mean() < (other - strong).abs().mean()
    # the pool is what the labelled share leaves out
    pool = trainer.train_loader._unlabelled.loader.samples.dataset
    assert len(pool) == 1442 - 144
    assert (pool.targets == -1).all()


@pytest.mark.parametrize(
    ("unlabelled", "message"),
    [
        (WeakAndStrong(strong=AugMix()), "unlabelled.strong must make one view of uint8 pixels, got AugMix"),
        (WeakAndStrong(ratio=200), "unlabelled.ratio must make batches that the pool's 1298 images fill, got 200"),
        (WeakAndStrong(name="digts"), "data.name must be one of .*did you mean digits"),
        (None, "unlabelled must be weakandstrong for this task, got none"),
    ],
)
def test_what_does_not_fit_is_told_by_its_field(unlabelled, message):
    with pytest.raises(RecipeError, match=message):
        build(replace(get_recipe("fixmatch"), unlabelled=unlabelled))
