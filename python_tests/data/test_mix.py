"""Mixup, CutMix, Cutout and random erasing: timm's numbers, and what must hold whatever is drawn."""

from functools import partial

import numpy as np
import pytest
import torch
from optional import peer

from vtkernels.data import Cutout, Mixup, RandomErasing, soft_targets
from vtkernels.data.mix import cutmix_box


@pytest.fixture
def batch():
    return torch.rand(6, 3, 10, 14), torch.tensor([0, 1, 2, 3, 3, 1])


def test_published_weights():
    np.random.seed(0)
    mix = Mixup(0.8, 1.0)
    drawn = [mix._draw(np.random) for _ in range(4)]
    assert drawn == [(0.5315061016529674, False), (0.43652999532664927, False), (0.10808802566967791, False), (0.5713574670487054, False)]


def test_published_box():
    np.random.seed(0)
    assert cutmix_box((32, 32), 0.6, np.random) == (2, 22, 5, 25)
    box, weight = Mixup(0.0, 1.0)._box((32, 32), 0.6, np.random.RandomState(0))
    assert box == (2, 22, 5, 25) and weight == 0.609375


def test_published_targets():
    labels = soft_targets(torch.arange(4), 4, 0.1, torch.float64)
    mixed = labels * 0.7 + labels.flip(0) * 0.3
    torch.testing.assert_close(mixed[0], torch.tensor([0.655, 0.025, 0.025, 0.295], dtype=torch.float64))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", [{"mixup_alpha": 0.8, "cutmix_alpha": 1.0}, {"mixup_alpha": 0.8}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}])
@pytest.mark.parametrize("more", [{}, {"prob": 0.5, "correct_lam": False}, {"cutmix_minmax": (0.2, 0.8)}], ids=["plain", "sometimes", "minmax"])
def test_equals_timm(mode, kind, more, batch):
    theirs = peer("timm.data.mixup").Mixup(**kind, **more, mode=mode, num_classes=5)
    ours = Mixup(**kind, **more, mode=mode, num_classes=5)
    images, targets = batch
    for seed in range(12):
        np.random.seed(seed)
        expected, expected_targets = theirs(images.clone(), targets)
        mixed, mixed_targets = ours(images, targets, np.random.RandomState(seed))
        assert torch.equal(mixed, expected)
        assert torch.equal(mixed_targets, expected_targets)


@pytest.mark.parametrize("options", [{"partner": "permutation"}, {"mode": "elem"}, {"mode": "pair"}, {}])
def test_label_mass_and_weights_follow_the_pixels(options):
    # image i is constant i: what is in the mixture can be counted
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 16, 16)
    identity = torch.eye(6)
    for seed in range(20):
        mixed, targets = Mixup(1.0, 1.0, label_smoothing=0.0, num_classes=6, **options)(images, identity, np.random.RandomState(seed))
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
        mean = (targets * torch.arange(6.0)).sum(dim=1)
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), mean, rtol=1e-5, atol=1e-5)


def test_nothing_mixed_leaves_the_bits(batch):
    images, targets = batch
    for mix in (Mixup(prob=0.0, num_classes=5), Mixup(prob=0.0, mode="elem", num_classes=5)):
        mixed, labels = mix(images, targets)
        assert torch.equal(mixed, images) and torch.equal(labels, soft_targets(targets, 5, 0.1))
    off = Mixup(num_classes=5)
    off.enabled = False
    assert torch.equal(off(images, targets)[0], images)


def test_views_are_mixed_alike(batch):
    images, targets = batch
    for mode in ("batch", "pair", "elem"):
        one, labels = Mixup(1.0, 1.0, mode=mode, num_classes=5)(images, targets, np.random.RandomState(3))
        both, labels_of_both = Mixup(1.0, 1.0, mode=mode, num_classes=5, views=2)(torch.cat([images, images + 1]), targets, np.random.RandomState(3))
        assert torch.equal(both[:6], one) and torch.equal(labels_of_both, labels)
        torch.testing.assert_close(both[6:], one + 1)


def test_bad_batches_are_refused(batch):
    images, targets = batch
    with pytest.raises(ValueError, match="be even, so that no sample is its own partner, got 5"):
        Mixup(num_classes=5)(images[:5], targets[:5])
    assert Mixup(num_classes=5, partner="permutation")(images[:5], targets[:5])[0].shape == (5, 3, 10, 14)
    with pytest.raises(TypeError, match="float"):
        Mixup(num_classes=5)(images.to(torch.uint8), targets)
    with pytest.raises(ValueError, match="3 views of 6 targets"):
        Mixup(num_classes=5, views=3)(images, targets)
    with pytest.raises(ValueError, match="nor both 0"):
        Mixup(mixup_alpha=0.0)
    for make, name in ((Mixup, "prob"), (Mixup, "switch_prob"), (Mixup, "label_smoothing"), (RandomErasing, "prob"), (partial(Cutout, 4), "prob")):
        for share in (3, -0.1, float("nan")):
            with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, got {share}"):
                make(**{name: share})
    with pytest.raises(ValueError, match=r"shape \[6, 4\]"):
        soft_targets(torch.eye(6), 4)
    assert Mixup(num_classes=5)(images[:0], targets[:0])[1].shape == (0, 5)


def test_cutout_clips_at_the_borders():
    images = torch.ones(400, 1, 12, 20)
    cut = Cutout(6)(images, np.random.RandomState(0))
    assert images.min() == 1, "the argument is left alone"
    holes = (cut == 0).flatten(1).sum(dim=1)
    # whole squares hold 36; one around a corner pixel 3 x 3
    assert holes.max() == 36 and 9 <= holes.min() < 18
    assert torch.equal(Cutout(6, prob=0.0)(images, np.random.RandomState(0)), images)
    share = (Cutout(6, prob=0.5)(images, np.random.RandomState(0)) == 0).flatten(1).any(dim=1).float().mean()
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erased_areas(mode):
    images = torch.full((500, 3, 24, 32), 7.0)
    erased = RandomErasing(1.0, mode=mode)(images, np.random.RandomState(0))
    changed = erased != 7
    shares = changed[:, 0].float().mean(dim=(1, 2))
    assert shares.min() > 0.015 and shares.max() < 0.36 and abs(shares.mean() - 0.17) < 0.02
    rows, columns = changed[:, 0].any(dim=2).sum(dim=1), changed[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, changed[:, 0].sum(dim=(1, 2))), "rectangles"
    assert (rows / columns).min() > 0.2 and (rows / columns).max() < 5
    values = erased[0][:, changed[0, 0]]
    assert {"const": values.unique().tolist() == [0.0], "rand": len(values.unique()) == 3, "pixel": len(values.unique()) == values.numel()}[mode]


def test_erasing_spares_clean_views_and_some_images():
    images = torch.ones(300, 1, 16, 16)
    erased = (RandomErasing(1.0, views=3, mode="const")(images, np.random.RandomState(0)) == 0).flatten(1).any(dim=1)
    assert not erased[:100].any() and erased[100:].all()
    share = (RandomErasing(0.25, mode="const")(images, np.random.RandomState(0)) == 0).flatten(1).any(dim=1).float().mean()
    assert 0.17 < share < 0.33
