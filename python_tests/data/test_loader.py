"""The loader: independent of workers, resumable at any batch, exact in evaluation."""

import logging
import random

import numpy as np
import pytest
import torch

from vtkernels.data import CorruptImage, Mixup, RandomErasing, create_dataset, create_loader
from vtkernels.data.datasets._base import ImageDataset, Statistics
from vtkernels.data.loader import normalised


@pytest.fixture(scope="module")
def shapes():
    return create_dataset("shapes", count=22, size=8)


def by_all_generators(image):
    """Draws as other libraries' transforms do."""
    level = (random.random() + np.random.rand() + float(torch.rand(()))) / 3
    return torch.full((1, 2, 2), level)


def by_own_seed(image, seed):
    return np.random.default_rng(seed).random((1, 2, 2), dtype=np.float32)


def two_views(image, seed):
    return [np.moveaxis(image, -1, 0).astype(np.float32), np.random.default_rng(seed).random((3, 8, 8), dtype=np.float32)]


def batches(loader):
    return [(images.clone(), targets.clone()) for images, targets in loader]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("transform", [by_all_generators, by_own_seed])
def test_workers_change_nothing(shapes, transform):
    loaders = [create_loader(shapes, 4, train=True, transform=transform, workers=workers, seed=3) for workers in (0, 2)]
    first, second = ([batches(loader) for _ in range(2)] for loader in loaders)
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)
    assert not torch.equal(first[0][0][0], first[1][0][0]), "epochs differ"
    levels = torch.cat([images for images, _ in first[0]]).flatten(1)[:, 0]
    assert len(levels.unique()) == 20, "samples differ"
    assert not torch.equal(levels, torch.cat([x for x, _ in create_loader(shapes, 4, train=True, transform=transform, seed=4)]).flatten(1)[:, 0])


def test_global_generators_go_on_undisturbed(shapes):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    batches(create_loader(shapes, 4, train=True, transform=by_all_generators))
    assert torch.equal(torch.rand(2), expected[0]) and random.random() == expected[1] and np.random.rand() == expected[2]


@pytest.mark.parametrize(("workers", "then"), [(0, 0), (2, 2), (0, 2)])
@pytest.mark.parametrize("done", [0, 2, 5])
def test_resuming_inside_an_epoch_is_exact(shapes, workers, then, done):
    """Also in as many processes as one likes: the batches are those of a loader without any."""

    def loader(workers):
        options = {"statistics": shapes.statistics, "erase": RandomErasing(0.5), "mix": Mixup(num_classes=8, cutmix_alpha=1.0)}
        return create_loader(shapes, 4, train=True, workers=workers, seed=1, **options)

    whole, started, resumed = loader(0), loader(workers), loader(then)
    for one in (whole, started):
        batches(one)
    expected, state = batches(whole), started.state_dict()
    for number, _ in enumerate(started, 1):
        state = started.state_dict() if number <= done else state
        if number == done:
            break
    assert state["epoch"] == 1 and state["batch"] == done
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(1)
    assert_same(batches(resumed), expected[done:])
    assert resumed.epoch == 2
    assert_same(batches(resumed), batches(whole))


def test_a_state_of_other_batches_is_refused(shapes):
    state = create_loader(shapes, 4, train=True).state_dict()
    with pytest.raises(ValueError, match="batch_size 4 then and 5 now; go on at an epoch's start"):
        create_loader(shapes, 5, train=True).load_state_dict(state)


def test_leaving_an_epoch_begins_it_anew(shapes):
    loader = create_loader(shapes, 4, train=True, workers=1)
    first = next(iter(loader))
    assert torch.equal(batches(loader)[0][0], first[0])


def test_evaluation_over_processes_is_exact(shapes):
    targets = [torch.cat([y for _, y in create_loader(shapes, 4, rank=rank, world=3)]) for rank in range(3)]
    assert sorted(len(own) for own in targets) == [7, 7, 8]
    assert torch.equal(torch.cat(targets).sort().values, torch.from_numpy(shapes.targets).sort().values)
    loader = create_loader(shapes, 4)
    assert_same(batches(loader), batches(loader))
    assert len(loader) == 6 and len(create_loader(shapes, 4, train=True)) == 5
    with pytest.raises(ValueError, match="counts each sample once"):
        create_loader(shapes, 4, repeats=3)


def test_the_place_is_asked_of_torch(shapes, monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert_same(batches(create_loader(shapes, 4)), batches(create_loader(shapes, 4, rank=1, world=3)))


def test_erasing_comes_before_mixing_and_differs_between_processes(shapes):
    def first(**options):
        return next(iter(create_loader(shapes, 4, statistics=shapes.statistics, seed=2, **options)))[0]

    plain, erased = first(), first(erase=RandomErasing(1.0, mode="const"))
    assert ((erased == plain) | (erased == 0)).all() and (erased != plain).flatten(1).any(dim=1).all()
    # one process sees the even samples, the other the odd ones, each with rectangles of its own
    zeros = [(first(erase=RandomErasing(1.0, mode="const"), rank=rank, world=2) == 0).all(dim=1) for rank in range(2)]
    assert not torch.equal(*zeros)
    mixed = first(erase=lambda images, rng: images * 0, mix=Mixup(num_classes=8))
    assert not mixed.any()


def test_shapes_of_batches(shapes):
    images, targets = next(iter(create_loader(shapes, 4)))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 8, 8) and images.is_contiguous()
    assert torch.equal(images[1], torch.from_numpy(shapes[1][0]).permute(2, 0, 1)) and targets.dtype == torch.int64
    views, targets = next(iter(create_loader(shapes, 4, transform=two_views)))
    assert views.shape == (8, 3, 8, 8) and torch.equal(views[:4], images.float()) and len(targets) == 4
    stacked, _ = next(iter(create_loader(shapes, 4, transform=lambda image, seed: np.stack(two_views(image, seed)))))
    assert torch.equal(stacked, views)
    pillow = pytest.importorskip("PIL.Image")
    assert torch.equal(next(iter(create_loader(shapes, 4, transform=pillow.fromarray)))[0], images)
    assert next(iter(create_loader(shapes, 4, transform=lambda image: pillow.fromarray(image).convert("L"))))[0].shape == (4, 1, 8, 8)
    detection = create_dataset("shapes", count=4, size=8, task="detection")
    _, targets = next(iter(create_loader(detection, 4)))
    assert len(targets) == 4 and targets[0]["boxes"].shape == (1, 4)
    segmentation = create_dataset("shapes", count=4, size=(8, 10), task="segmentation")
    images, targets = next(iter(create_loader(segmentation, 4)))
    assert images.shape == (4, 3, 8, 10) and targets.shape == (4, 8, 10) and targets.dtype == torch.uint8
    with pytest.raises(ValueError, match="one shape in a batch"):
        next(iter(create_loader(shapes, 4, transform=lambda image, seed: image[: 2 + seed % 6])))
    assert batches(create_loader(create_dataset("shapes", count=0), 4)) == []


def test_normalisation():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-2.5, 2.5]], [[-0.5, 0.5]]]])
    statistics = Statistics((0.5, 0.3), (0.2, 0.2))
    torch.testing.assert_close(normalised(images, statistics), expected)
    torch.testing.assert_close(normalised(images.double() / 255, statistics), expected)


def test_views_are_mixed_alike(shapes):
    mix = Mixup(num_classes=8, views=2)
    images, targets = next(iter(create_loader(shapes, 5, transform=two_views, mix=mix)))
    assert images.shape == (8, 3, 8, 8) and targets.shape == (4, 8), "an odd batch loses its last sample in each view"
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    # 22 is 7 * 3 + 1, and of the last one nothing would be left
    assert [len(targets) for _, targets in create_loader(shapes, 7, statistics=shapes.statistics, mix=Mixup(num_classes=8))] == [6, 6, 6]


def test_batches_and_samples_draw_apart(shapes):
    drawn = []

    def mix(images, targets, rng):
        drawn.append(rng.rand())
        return images, targets

    loader = create_loader(shapes, 2, transform=lambda image: np.full((1, 1, 1), np.random.rand()), mix=mix)
    samples = torch.cat([images for images, _ in loader]).flatten().tolist()
    assert len(drawn) == 11 and len({*drawn, *samples}) == 33


def test_transforms_of_all_kinds(shapes):
    class Module(torch.nn.Module):
        def forward(self, image, seed):
            return by_own_seed(image, seed)

    assert_same(batches(create_loader(shapes, 4, transform=Module())), batches(create_loader(shapes, 4, transform=by_own_seed)))
    # which has no signature
    assert next(iter(create_loader(shapes, 4, transform=torch.from_numpy)))[0].shape == (4, 8, 8, 3)


class Damaged(ImageDataset):
    def __init__(self, bad):
        super().__init__("ab", [0, 1] * 4)
        self.bad = bad

    def image(self, index):
        if index in self.bad:
            raise CorruptImage(f"folder/{index}.jpg", "cut off")
        return np.full((2, 2, 3), index, np.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_raise_or_are_skipped(workers, caplog):
    dataset = Damaged({1, 4, 5})
    with pytest.raises(CorruptImage, match=r"folder/1.jpg: expected a readable image, got cut off"):
        batches(create_loader(dataset, 2, workers=workers))
    loader = create_loader(dataset, 2, workers=workers, on_corrupt="skip")
    with caplog.at_level(logging.WARNING):
        read = batches(loader)
    # the batch of 4 and 5 is empty and left out
    assert [images.flatten(1)[:, 0].tolist() for images, _ in read] == [[0], [2, 3], [6, 7]]
    assert loader.corrupt == ["folder/1.jpg", "folder/4.jpg", "folder/5.jpg"]
    assert "(3 so far): folder/5.jpg: cut off" in caplog.text


def test_arguments_are_checked(shapes):
    for options, message in (
        ({"on_corrupt": "ignore"}, "'raise' or 'skip'"),
        ({"rank": 1}, "given together"),
        ({"batch_size": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"batch_size": 23, "train": True}, "hold a batch of 23 for this process, got 22 samples; try a smaller batch_size"),
        ({"batch_size": 12, "train": True, "rank": 1, "world": 2}, "got 11 samples"),
        ({"batch_size": 1, "train": True, "mix": Mixup(num_classes=8)}, "at least 2 where images are mixed"),
    ):
        with pytest.raises(ValueError, match=message):
            create_loader(shapes, **{"batch_size": 4, **options})
    assert len(create_loader(shapes, 23, train=True, drop_last=False)) == 1
