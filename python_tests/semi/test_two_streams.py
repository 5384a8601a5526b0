"""Labelled and unlabelled images in one batch: who is in it, for how long each stream goes on, and exact resume."""

import numpy as np
import pytest
import torch

from vtkernels.data import StreamTargets, TwoStreams, create_loader
from vtkernels.data.datasets._base import ArrayDataset


def numbered(count: int, first: int = 0) -> ArrayDataset:
    """Image n is of the colour n, whose label says so, too."""
    values = np.arange(first, first + count)
    images = np.broadcast_to(values[:, None, None, None], (count, 4, 4, 3)).astype(np.uint8)
    return ArrayDataset(images, values, [str(value) for value in range(first + count)])


def streams(labelled: int = 10, unlabelled: int = 26, batch: int = 3, ratio: int = 2, **options) -> TwoStreams:
    one = create_loader(numbered(labelled), batch, train=True, **options)
    return TwoStreams(one, create_loader(numbered(unlabelled, 100), batch * ratio, train=True, **options))


def colours(batch) -> tuple[list[int], list[int]]:
    images, targets = batch
    known, others = targets.split(images[:, 0, 0, 0])
    return known.tolist(), others.tolist()


def test_a_batch_is_labelled_images_and_ratio_times_as_many_others():
    pair = streams()
    batches = list(pair)
    assert len(batches) == len(pair) == 10 // 3
    for images, targets in batches:
        assert images.shape == (3 + 6, 3, 4, 4)
        assert (len(targets.labelled), len(targets.unlabelled), len(targets)) == (3, 6, 9)
        known, others = colours((images, targets))
        assert known == targets.labelled.tolist()
        assert others == targets.unlabelled.tolist()
        assert max(known) < 100 <= min(others)


def test_the_other_stream_goes_on_over_epochs():
    pair = streams(unlabelled=24)
    seen = [colour for _ in range(4) for batch in pair for colour in colours(batch)[1]]
    # three batches of six an epoch, four of them the whole pool: four epochs are three passes
    assert pair.epoch == 4
    for start in range(0, 72, 24):
        assert sorted(seen[start : start + 24]) == list(range(100, 124))


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_is_exact_at_every_batch(workers):
    whole = streams(workers=workers)
    states, expected = [whole.state_dict()], []
    for _ in range(3):
        for batch in whole:
            expected.append(colours(batch))
            states.append(whole.state_dict())
    for place in range(0, len(expected), 1 if workers == 0 else 4):
        again = streams(workers=workers)
        again.load_state_dict(states[place])
        found = []
        while len(found) < len(expected) - place:
            found += [colours(batch) for batch in again]
        assert found == expected[place:]


def test_an_epoch_by_its_number_is_the_one_that_comes_by_itself():
    whole = streams()
    epochs = [[colours(batch) for batch in whole] for _ in range(4)]
    for epoch in (3, 1, 2, 0):
        pair = streams()
        pair.set_epoch(epoch)
        assert [colours(batch) for batch in pair] == epochs[epoch]


def test_an_epoch_left_in_its_middle_begins_anew():
    pair = streams()
    next(iter(pair))
    assert [colours(batch) for batch in pair] == [colours(batch) for batch in streams()]


def test_two_processes_share_both_streams():
    parts = [streams(labelled=12, unlabelled=24, batch=2, rank=rank, world=2) for rank in range(2)]
    known, others = zip(*(colours(batch) for part in parts for batch in part), strict=True)
    assert sorted(sum(known, [])) == list(range(12))
    assert len(set(sum(others, []))) == 24


def test_views_of_unlabelled_images_are_told_from_samples():
    labelled = create_loader(numbered(8), 2, train=True)
    views = create_loader(numbered(8, 100), 2, train=True, transform=lambda image, seed: [image, 255 - image])
    images, targets = next(iter(TwoStreams(labelled, views)))
    assert len(images) == 2 + 2 * 2
    assert len(targets) == 4
    weak, strong = targets.split(images)[1].chunk(2)
    assert torch.equal(strong, 255 - weak)


def test_what_does_not_fit_is_refused():
    loader = create_loader(numbered(8), 2, train=True)
    with pytest.raises(TypeError, match="unlabelled must be a loader for training, got a loader for evaluation"):
        TwoStreams(loader, create_loader(numbered(8), 2))
    with pytest.raises(TypeError, match="labelled must be a loader for training, got list"):
        TwoStreams([], loader)
    with pytest.raises(ValueError, match="unlabelled must be another loader"):
        TwoStreams(loader, loader)
    with pytest.raises(ValueError, match="state must come from two streams"):
        streams().load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="batch_size 6 then and 4 now"):
        streams(ratio=2, batch=2).load_state_dict(streams(ratio=2, batch=2).state_dict() | {"unlabelled": streams().state_dict()["unlabelled"]})
    larger = create_loader(numbered(8), 2, train=True, transform=lambda image, seed: np.tile(image, (2, 2, 1)))
    with pytest.raises(ValueError, match="one shape and type"):
        next(iter(TwoStreams(loader, larger)))
    assert len(StreamTargets(torch.zeros(2), torch.zeros(3))) == 5
