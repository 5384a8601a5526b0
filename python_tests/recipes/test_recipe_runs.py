"""Every recipe at its smallest: it trains, its loss is finite, and it goes on from its checkpoint."""

import math
from dataclasses import replace

import pytest

from vtkernels.recipes import Recipe, build, get_recipe, list_recipes, tiny


def shortest(name: str) -> Recipe:
    """One epoch of four updates."""
    recipe = tiny(get_recipe(name), epochs=2)
    return replace(recipe, data=replace(recipe.data, fraction=0.09, batch_size=32), augment=replace(recipe.augment, repeats=1))


def trains_and_resumes(name: str, folder) -> None:
    recipe = shortest(name)
    history = build(
        replace(recipe, train=replace(recipe.train, epochs=1), schedule=replace(recipe.schedule, warmup=0, warmup_updates=None)), folder=folder
    ).fit()
    assert math.isfinite(history.epochs[0].train["loss"])
    assert 0 <= history.epochs[0].valid[recipe.train.monitor] <= 1
    again = build(recipe, folder=folder).resume().fit()
    assert [record.epoch for record in again.epochs] == [1, 2]
    assert Recipe.load(folder).name == name


@pytest.mark.parametrize("name", ["smoke", "swin_t_drloc", "augmix_cifar"])
def test_recipes_train_and_resume(name, tmp_path):
    trains_and_resumes(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_recipes() if name not in ("smoke", "swin_t_drloc", "augmix_cifar")])
def test_all_recipes_train_and_resume(name, tmp_path):
    trains_and_resumes(name, tmp_path)


@pytest.mark.slow
def test_smoke_learns():
    history = build(get_recipe("smoke")).fit()
    assert history.epochs[-1].valid["top1"] > 0.8
