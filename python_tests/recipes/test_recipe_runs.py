"""Every recipe at its smallest: it trains, its loss is finite, and it goes on from its checkpoint."""

import math
from dataclasses import replace

import pytest

from vtkernels.recipes import PseudoLabelled, Recipe, build, get_recipe, list_recipes, plan, tiny


def shortest(name: str) -> Recipe:
    """One epoch of four updates."""
    recipe = tiny(get_recipe(name), epochs=2)
    # what learns from images without labels has few of the others already
    data = recipe.data if recipe.unlabelled else replace(recipe.data, fraction=0.09, batch_size=32)
    augment = replace(recipe.augment, repeats=1) if hasattr(recipe.augment, "repeats") else recipe.augment
    return replace(recipe, data=data, augment=augment)


def trains_and_resumes(name: str, folder) -> None:
    recipe = shortest(name)
    trainer = build(replace(recipe, train=replace(recipe.train, epochs=1), schedule=replace(recipe.schedule, warmup=0, warmup_updates=None)), folder=folder)
    history = trainer.fit()
    assert math.isfinite(history.epochs[0].train["loss"])
    assert history.epochs[0].valid.keys() == set(trainer.task.metrics)
    assert 0 <= history.epochs[0].valid[recipe.train.monitor] <= 1
    again = build(recipe, folder=folder).resume().fit()
    assert [record.epoch for record in again.epochs] == [1, 2]
    assert Recipe.load(folder).name == name


QUICK = ["smoke", "bert_like", "swin_t_drloc", "augmix_cifar", "deit_iii", "linear_probe", "augmix_cifar_adversarial", "noisy_labels", "cct", "t2t_transfer"]


@pytest.mark.parametrize("name", QUICK)
def test_recipes_train_and_resume(name, tmp_path):
    trains_and_resumes(name, tmp_path)


def trains_alone(name: str) -> bool:
    """Whether there is all that it learns from: a student's pseudo-labels are made by `vtkernels noisy-student`."""
    return not isinstance(get_recipe(name).unlabelled, PseudoLabelled)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_recipes() if name not in QUICK and trains_alone(name)])
def test_all_recipes_train_and_resume(name, tmp_path):
    trains_and_resumes(name, tmp_path)


PLANNED = ["bert_like", "kd", "swin_b_simmim", "deit_384_attention", "cait_xxs24", "cvt", "vit_small_data_spt_lsa", "noisy_labels_bootstrap"]


def is_planned(name: str) -> None:
    lines = dict(line.split(maxsplit=1) for line in plan(get_recipe(name), world=8).splitlines())
    assert lines["recipe"] == name
    assert lines["batch"].startswith(f"{get_recipe(name).data.batch_size} = 8 processes")
    assert {"model", "steps", "memory", "rates"} <= lines.keys()


@pytest.mark.parametrize("name", PLANNED)
def test_recipes_are_planned_without_data(name):
    is_planned(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_recipes() if name not in (*PLANNED, "smoke", "demo")])
def test_all_recipes_are_planned_without_data(name):
    is_planned(name)


@pytest.mark.slow
def test_smoke_learns():
    history = build(get_recipe("smoke")).fit()
    assert history.epochs[-1].valid["top1"] > 0.8


@pytest.mark.slow
def test_berts_encoder_learns_without_text():
    history = build(get_recipe("bert_like")).fit()
    assert history.epochs[-1].valid["top1"] > 0.5
