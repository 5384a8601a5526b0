"""digits, shapes, and what all sets have in common."""

import numpy as np
import pytest
import torch

import vtkernels as vt
from vtkernels.data import create_dataset, list_datasets


def test_names_and_options_are_checked(tmp_path):
    assert {"digits", "shapes", "cifar10", "svhn", "flowers102", "domainnet", "imagenet-c", "cifar100-c"} <= set(list_datasets())
    with pytest.raises(ValueError, match="did you mean digits"):
        create_dataset("digit")
    with pytest.raises(TypeError, match="no option sizes; it has size, channels"):
        create_dataset("digits", sizes=3)
    with pytest.raises(ValueError, match="train, test"):
        create_dataset("digits", "validation")
    with pytest.raises(FileNotFoundError, match="nothing is downloaded; get them from https"):
        create_dataset("cifar10", root=tmp_path / "nowhere")
    assert vt.data.create_dataset is create_dataset


def test_digits_are_split_once_and_for_all():
    train, test = create_dataset("digits", "train", size=8), create_dataset("digits", "test", size=8)
    assert len(train) + len(test) == 1797
    share = np.bincount(test.targets) / (np.bincount(test.targets) + np.bincount(train.targets))
    assert np.all(abs(share - 0.2) < 0.01)
    image, target = test[-1]
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and image.max() == 255
    assert target == test.targets[-1] and test.classes[target] == str(target)
    image[:] = 0
    assert test[-1][0].any(), "a sample that is changed in place must not change the set"


def test_digits_in_other_sizes():
    small, large = create_dataset("digits", "test", size=8), create_dataset("digits", "test")
    assert large[0][0].shape == (32, 32, 3) and create_dataset("digits", "test", channels=1)[0][0].shape == (32, 32, 1)
    assert abs(large.images.mean() - small.images.mean()) < 0.5
    np.testing.assert_allclose(large.statistics.mean[0], large.images.mean() / 255, atol=0.005)
    np.testing.assert_allclose(large.statistics.std[0], large.images.std() / 255, atol=0.005)
    with pytest.raises(IndexError, match="355 samples"):
        large[355]


def test_shapes_depend_on_their_index_alone():
    few, many = create_dataset("shapes", count=6, objects=3), create_dataset("shapes", count=50, objects=3)
    for index in (0, 5):
        np.testing.assert_array_equal(few[index][0], many[index][0])
    assert not np.array_equal(few[0][0], create_dataset("shapes", count=6, objects=3, seed=1)[0][0])
    assert not np.array_equal(few[0][0], create_dataset("shapes", "test", count=6, objects=3)[0][0])
    assert len(create_dataset("shapes", count=0)) == 0


def test_boxes_and_masks_of_shapes_agree():
    options = {"count": 40, "size": (24, 50), "objects": 4, "classes": 5}
    objects, maps, labels = (create_dataset("shapes", task=task, **options) for task in ("detection", "segmentation", "classification"))
    several = 0
    for index in range(40):
        image, found = objects[index]
        assert image.shape == (24, 50, 3)
        masks, boxes = found["masks"], found["boxes"]
        assert masks.shape == (len(boxes), 24, 50) and masks.any(axis=(1, 2)).all()
        assert masks.sum(axis=0).max() == 1, "masks show what is visible"
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = True
            assert not (mask & ~inside).any()
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()
        expected = np.zeros((24, 50), np.uint8)
        for mask, label in zip(masks, found["labels"], strict=True):
            expected[mask] = 1 + label
        np.testing.assert_array_equal(maps[index][1], expected)
        assert labels[index][1] == found["labels"][-1] == index % 5
        several += len(boxes) > 1
    assert several > 10


def test_shapes_can_be_told_apart():
    """The class must be visible: its mask's form alone, scaled to its box, finds it again."""
    dataset = create_dataset("shapes", count=64, size=48, task="detection")
    templates, correct = {}, 0
    for index in range(64):
        found = dataset[index][1]
        left, top, right, bottom = found["boxes"][0].astype(int)
        crop = torch.from_numpy(found["masks"][0][top:bottom, left:right]).float()
        form = torch.nn.functional.interpolate(crop[None, None], (16, 16), mode="area").flatten()
        label = int(found["labels"][0])
        if label in templates:
            correct += min(templates, key=lambda other, form=form: float((templates[other] - form).square().sum())) == label
        else:
            templates[label] = form
    assert correct > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [({"classes": 1}, "2..8"), ({"task": "boxes"}, "classification, detection"), ({"size": 4}, "at least 0, 1 and 8"), ({"objects": 0}, "at least 0, 1")],
)
def test_impossible_shapes(options, message):
    with pytest.raises(ValueError, match=message):
        create_dataset("shapes", **options)
