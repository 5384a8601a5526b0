"""Orders of an epoch, alone and dealt out to several processes."""

import numpy as np
import pytest

from vtkernels.data.samplers import InOrder, Repeated, SampleKey, Shuffled


def all_ranks(kind, count, world, epoch=0, **options):
    samplers = [kind(count, rank=rank, world=world, **options) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 4), (3, 4), (0, 2)])
def test_evaluation_counts_each_sample_once(count, world):
    shares = all_ranks(InOrder, count, world)
    assert sorted(key.index for share in shares for key in share) == list(range(count))
    assert {key.copy for share in shares for key in share} <= {0}


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 4), (3, 4), (0, 2), (1, 5), (2, 7)])
def test_training_gives_all_processes_equally_many(count, world):
    shares = all_ranks(Shuffled, count, world, epoch=3)
    assert len({len(share) for share in shares}) == 1
    keys = [key for share in shares for key in share]
    assert {key.index for key in keys} == set(range(count))
    assert len(set(keys)) == len(keys), "padding is augmented in another way"
    assert all(key.epoch == 3 for key in keys)


def test_orders_depend_on_seed_and_epoch():
    def order(seed, epoch):
        return [key.index for key in all_ranks(Shuffled, 50, 1, epoch, seed=seed)[0]]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(5, 2)


def test_repeated_augmentation_by_the_published_numbers():
    shares = all_ranks(Repeated, 1000, 4, epoch=1)
    assert [len(share) for share in shares] == [192] * 4
    heads = [[key.index for key in share[:4]] for share in shares]
    assert heads == [[845, 303, 66, 239], [845, 303, 436, 239], [845, 66, 436, 239], [303, 66, 436, 593]]
    keys = [key for share in shares for key in share]
    assert len({key.index for key in keys}) == 256
    # copies of one image are augmented each in its own way
    assert len(set(keys)) == len(keys) and {key.copy for key in keys} == {0, 1, 2}
    assert shares[0][0] == SampleKey(1, 845, 0) and shares[1][0] == SampleKey(1, 845, 1)


def test_repeats_in_a_small_set():
    assert len(Repeated(100, 3)) == 100 and len(Repeated(100, 3, world=3)) == 34
    assert len(Repeated(1000, 3, world=4, round_to=0)) == 250
    visits = Repeated(100, 3).visits()
    assert np.bincount(visits[:, 0]).max() == 3 and len(np.unique(visits[:, 0])) == 34
    with pytest.raises(ValueError, match=r"rank must lie in 0\.\.1, got 2"):
        InOrder(4, rank=2, world=2)
