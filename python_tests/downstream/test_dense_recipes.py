"""Recipes of segmentation and detection: their values, small runs from checkpoints with frozen trunks, and what does not fit."""

from dataclasses import replace

import pytest
import torch

from vtkernels import cli
from vtkernels.recipes import Detection, Recipe, RecipeError, Scene, Segmentation, build, get_recipe, tiny
from vtkernels.recipes._plan import task_without_memory

NAMES = ("ade20k_upernet", "coco_detection", "shapes_segmentation", "shapes_detection")

# recipes.md, section 8
ADE20K = {
    "data.size": 512,
    "data.batch_size": 16,
    "optim.lr": 6e-5,
    "optim.weight_decay": 0.01,
    "schedule.warmup_updates": 1500,
    "schedule.final_lr": 0.0,
    "model.drop_path": 0.2,
    "model.name": "swin_tiny_patch4_window7_224",
    "task.head": "upernet",
    "train.monitor": "miou",
}
COCO = {
    "data.batch_size": 16,
    "optim.lr": 1e-4,
    "optim.weight_decay": 0.05,
    "schedule.warmup_updates": 500,
    "augment.shortest": (480, 800),
    "augment.longest": 1333,
    "train.epochs": 36,
    "model.drop_path": 0.2,
    "model.name": "swin_tiny_patch4_window7_224",
    "train.monitor": "map",
}


@pytest.mark.parametrize("name, values", [("ade20k_upernet", ADE20K), ("coco_detection", COCO)])
def test_values(name, values):
    recipe = get_recipe(name)
    for path, expected in values.items():
        value = recipe
        for field in path.split("."):
            value = getattr(value, field)
        assert value == expected, path


def test_parameters_are_the_published_ones():
    task = task_without_memory(get_recipe("ade20k_upernet"), 150)
    # 60 M with the auxiliary head
    assert round(sum(param.numel() for param in task.parameters()) / 1e6, 2) == 59.94


@pytest.mark.parametrize("name", NAMES)
def test_json(name):
    recipe = get_recipe(name)
    assert Recipe.from_json(recipe.json()) == recipe


def small(name: str, **task) -> Recipe:
    recipe = tiny(get_recipe(name), epochs=2)
    data = replace(recipe.data, batch_size=8, valid_batch_size=16, options={**recipe.data.options, "count": 16})
    return replace(recipe, data=data, task=replace(recipe.task, channels=16, **task))


@pytest.mark.parametrize("name", ["ade20k_upernet", "coco_detection"])
def test_small_runs_with_frozen_trunks(name, tmp_path):
    recipe = small(name, frozen=True)
    trunk = build(recipe).model.backbone.model
    weights = trunk.state_dict()
    torch.save({key: value + 0.01 if value.is_floating_point() else value for key, value in weights.items()}, tmp_path / "trunk.pth")
    recipe = replace(recipe, model=replace(recipe.model, checkpoint=str(tmp_path / "trunk.pth")))
    trainer = build(recipe, folder=tmp_path / "run")
    history = trainer.fit()
    assert history.epochs[-1].valid.keys() == set(trainer.task.metrics)
    assert 0 <= history.epochs[-1].valid[recipe.train.monitor] <= 1
    for key, value in trainer.model.backbone.model.state_dict().items():
        assert torch.equal(value.cpu(), torch.load(tmp_path / "trunk.pth")[key]), key
    assert Recipe.load(tmp_path / "run").task == recipe.task


def test_runs_are_evaluated_by_what_they_learnt(tmp_path, capsys):
    pytest.importorskip("tyro")
    history = build(small("shapes_segmentation"), folder=tmp_path).fit()
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path)]) == 0
    told = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert told == {name: f"{value:.4f}" for name, value in history.best.valid.items()}
    assert cli.main(["eval", str(tmp_path), "--data.name", "shape"]) == 2
    assert "did you mean shapes?" in capsys.readouterr().err


def test_whole_images_are_evaluated():
    recipe = small("coco_detection")
    trainer = build(recipe)
    images, targets = next(iter(trainer.valid_loader))
    assert images.shape[-2:] == (32, 32) and all(target["boxes"].max() <= 32 for target in targets)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"augment": get_recipe("smoke").augment}, "augment must suit the task, got one for images alone; try --augment scene"),
        ({"mix": get_recipe("deit").mix}, "mix must be none where pixels or boxes are learnt"),
        ({"augment": Scene(shortest=(9, 3))}, "augment.shortest"),
    ],
)
def test_what_does_not_fit(change, message):
    recipe = small("shapes_segmentation")
    with pytest.raises(RecipeError, match=message):
        build(replace(recipe, **change))
    boxes = replace(recipe, data=replace(recipe.data, options={"task": "detection", "count": 16}))
    with pytest.raises(RecipeError, match="data must have a map of classes for each image, got boxes in shapes; .*--data.options.task"):
        build(boxes)
    with pytest.raises(RecipeError, match="data must have boxes for each image, got maps of classes"):
        build(replace(recipe, task=small("shapes_detection").task, train=replace(recipe.train, monitor="map")))
    smoke = tiny(get_recipe("smoke"))
    with pytest.raises(RecipeError, match="augment must suit the task, got one for images with their masks or boxes; try --augment augment"):
        build(replace(smoke, augment=Scene()))


def test_wrong_numbers():
    for task in (Segmentation(channels=0), Detection(finest=0), Detection(extra=-1), Segmentation(auxiliary=-1.0)):
        with pytest.raises(RecipeError, match="task."):
            build(replace(small("shapes_detection"), task=task))
