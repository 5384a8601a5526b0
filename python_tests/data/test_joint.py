"""Images with their boxes and masks: what belongs together stays together."""

import numpy as np
import pytest
import torch
from images import require_imgops

from vtkernels.data import create_dataset, create_loader, joint
from vtkernels.data.augment import resize
from vtkernels.data.datasets.shapes import _boxes
from vtkernels.data.transforms import ColorJitter, Normalize


@pytest.fixture(autouse=True)
def extension():
    require_imgops()


@pytest.fixture(scope="module")
def detection():
    return create_dataset("shapes", count=30, size=(40, 56), objects=3, task="detection")


@pytest.fixture(scope="module")
def segmentation():
    return create_dataset("shapes", count=30, size=(40, 56), objects=3, task="segmentation")


def marked(labels):
    """An image that shows its own map of labels."""
    return np.repeat((labels * 20).astype(np.uint8)[..., None], 3, 2)


def test_flips(detection, segmentation):
    for index in range(30):
        image, target = detection[index]
        flipped, mirrored = joint.RandomFlip(1.0)(image, target, seed=0)
        assert (flipped == image[:, ::-1]).all() and (mirrored["masks"] == target["masks"][..., ::-1]).all()
        assert (mirrored["boxes"] == _boxes(mirrored["masks"])).all() and mirrored["boxes"].dtype == np.float32
        back, again = joint.RandomFlip(1.0)(flipped, mirrored, seed=0)
        assert (back == image).all() and all((again[name] == target[name]).all() for name in target)
    labels = segmentation[0][1]
    shown, changed = joint.RandomFlip()(marked(labels), labels, seed=2)
    assert (shown == marked(changed)).all()
    both = [(joint.RandomFlip()(image, target, seed=seed)[0] == image).all() for seed in range(100)]
    assert 30 < sum(both) < 70


@pytest.mark.parametrize("size", [(40, 56), (80, 112), (23, 31), 64, (7, 90)])
def test_sizes(detection, segmentation, size):
    for index in range(10):
        image, target = detection[index]
        resized, scaled = joint.Resize(size)(image, target)
        shape = (64, 89) if size == 64 else size
        assert resized.shape[:2] == shape and scaled["masks"].shape[1:] == shape
        assert (resized == resize(image, shape, "bilinear")).all() and scaled["masks"].dtype == bool
        np.testing.assert_allclose(scaled["boxes"], target["boxes"] * ([shape[1] / 56, shape[0] / 40] * 2), rtol=1e-6)
        labels = segmentation[index][1]
        assert (joint.Resize(size)(image, labels)[1] == resize(labels, shape, "nearest")).all()


def test_scales_are_drawn(detection):
    image, target = detection[0]
    sides = []
    for seed in range(200):
        scaled, _ = joint.RandomScale((0.5, 2.0))(image, target, seed=seed)
        sides.append(scaled.shape[0] / 40)
        assert scaled.shape[1] == pytest.approx(56 / 40 * scaled.shape[0], abs=1.5)
    assert 0.5 <= min(sides) < 0.6 and 1.8 < max(sides) <= 2
    assert np.mean(np.log(sides)) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("size", [(20, 30), (60, 30), (50, 64), 24])
def test_crops(detection, segmentation, size):
    crop, shape = joint.RandomCrop(size, fill=(1, 2, 3), void=99, least_visible=0.3), (24, 24) if size == 24 else size
    lost = 0
    for index in range(30):
        labels = segmentation[index][1]
        shown, cut = crop(marked(labels), labels, seed=index)
        assert shown.shape == (*shape, 3) and cut.shape == shape and cut.dtype == np.uint8
        assert (shown[cut != 99] == marked(cut)[cut != 99]).all() and (shown[cut == 99] == (1, 2, 3)).all()
        image, target = detection[index]
        again, kept = crop(image, target, seed=index)
        lost += len(target["labels"]) - len(kept["labels"])
        assert len({len(values) for values in kept.values()}) == 1 and kept["masks"].shape[1:] == shape
        for box, mask, label in zip(kept["boxes"], kept["masks"], kept["labels"], strict=True):
            assert 0 <= box[0] < box[2] <= shape[1] and 0 <= box[1] < box[3] <= shape[0]
            outside = mask.copy()
            outside[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = False
            assert not outside.any()
            assert set(np.unique(cut[mask])) <= {label + 1}
    assert (lost > 0) == (size in ((20, 30), (60, 30), 24))


def test_nothing_may_be_left():
    image, target = np.zeros((20, 20, 3), np.uint8), {"boxes": np.float32([[0, 0, 2, 2]]), "labels": np.array([5])}
    for seed in range(50):
        _, kept = joint.RandomCrop(4)(image, target, seed=seed)
        assert kept["boxes"].shape[1:] == (4,) and len(kept["boxes"]) == len(kept["labels"])
    empty = {"boxes": np.empty((0, 4), np.float32), "masks": np.empty((0, 20, 20), bool), "labels": np.empty(0, np.int64)}
    pipeline = joint.Compose(joint.RandomFlip(1.0), joint.RandomScale(), joint.RandomCrop(24), joint.Resize(16))
    image, kept = pipeline(image, empty, seed=1)
    assert image.shape == (16, 16, 3) and kept["boxes"].shape == (0, 4) and kept["masks"].shape == (0, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_hands_out_targets_too(detection, segmentation, workers):
    pipeline = joint.Compose(
        joint.RandomScale((0.7, 1.4)), joint.RandomCrop(32), joint.RandomFlip(), joint.OnImage(ColorJitter(0.2)), joint.OnImage(Normalize())
    )
    images, labels = next(iter(create_loader(segmentation, 6, train=True, transform=pipeline, workers=workers, seed=3)))
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.float32 and labels.shape == (6, 32, 32)
    again, targets = next(iter(create_loader(detection, 6, train=True, transform=pipeline, seed=3)))
    assert torch.equal(images, again), "seeds are those of the visits, whatever the workers"
    for one, target in zip(labels, targets, strict=True):
        for mask, label in zip(target["masks"], target["labels"], strict=True):
            assert (one[mask] == label + 1).all()


IMAGE = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: joint.RandomFlip()(IMAGE, np.zeros((9, 8)), seed=0), r"image's size \[8, 9\], got \[9, 8\]"),
        (lambda: joint.RandomFlip()(IMAGE, 3, seed=0), "got int"),
        (lambda: joint.Resize(4)(IMAGE, {"boxes": np.zeros((2, 4)), "labels": np.zeros(3)}), "one entry for each object"),
        (lambda: joint.Resize(4)(IMAGE, {"boxes": np.zeros(4)}), r"\[n, 4\]"),
        (lambda: joint.RandomScale((2, 1)), "in order"),
        (lambda: joint.RandomCrop(4, least_visible=2), "least_visible"),
        (lambda: joint.RandomCrop(4, void=-1)(IMAGE, np.zeros((8, 9), np.uint8), seed=0), "fit the map's uint8, got -1"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
