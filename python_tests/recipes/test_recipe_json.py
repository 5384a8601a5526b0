"""Recipes as JSON: nothing is lost on the way, and whatever does not belong is told by name."""

import json

import pytest

from vtkernels.recipes import GSAM, SAM, Augment, AugMix, Recipe, RecipeError, get_recipe, list_recipes, tiny


@pytest.mark.parametrize("name", list_recipes())
def test_nothing_is_lost(name):
    for recipe in (get_recipe(name), tiny(get_recipe(name)), get_recipe(name).resolved(8)):
        assert Recipe.from_json(recipe.json()) == recipe


def spoiled(change) -> str:
    content = json.loads(get_recipe("swin_t_drloc").json())
    change(content)
    return json.dumps(content)


def put(*path_and_value):
    *path, value = path_and_value

    def change(content):
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("optim", "lrr", 1), "optim.lrr is no field of AdamW; did you mean lr"),
        (put("optimm", {}), "optimm is no field of Recipe; did you mean optim"),
        (put("optim", "lr", "fast"), 'optim.lr must be a number, got "fast"'),
        (put("optim", "lr", None), "optim.lr must be a number, got null"),
        (put("train", "epochs", 1.5), "train.epochs must be a whole number, got 1.5"),
        (put("train", "epochs", True), "train.epochs must be a whole number, got true"),
        (put("train", "epochs", 0), "a.json: train: Settings: epochs must be at least 1, got 0"),
        (put("data", "squash", 1), "data.squash must be true or false, got 1"),
        (put("data", "normalize", "sett"), 'data.normalize must be "set" or "imagenet" or "half" or "none", got "sett"'),
        (put("augment", "crop", "scale", [0.1]), "augment.crop.scale must be a list of 2 values"),
        (put("augment", "crop", "scale", [0.1, "x"]), r"augment.crop.scale\[1\] must be a number"),
        (put("model", "options", [1]), "model.options must be an object"),
        (put("model", "options", {"dropout": None}), "model.options.dropout must be .*, got null"),
        (
            put("task", "inner", "kind", "Clasification"),
            'task.inner.kind must be Classification or Drloc or .*, got "Clasification"; did you mean Classification',
        ),
        (put("augment", "policy", {"spec": "rand-m9"}), "augment.policy.kind must be RandAugment or .*, got null"),
        (put("sam", 0.1), "sam must be an object or .* or null, got 0.1"),
    ],
)
def test_what_does_not_belong_is_named(change, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(spoiled(change), "a.json")


def test_text_that_is_no_json_is_told():
    with pytest.raises(RecipeError, match="half.json: expected JSON"):
        Recipe.from_json(get_recipe("smoke").json()[:100], "half.json")


def test_whole_numbers_are_numbers_too():
    recipe = Recipe.from_json(spoiled(put("optim", "lr", 1)))
    assert recipe.optim.lr == 1.0
    assert isinstance(recipe.optim.lr, float)


def test_left_out_fields_have_their_defaults():
    recipe = Recipe.from_json('{"sam": {"kind": "GSAM", "alpha": 0.2}, "augment": {"policy": {"kind": "AugMix"}}}')
    assert recipe == Recipe(sam=GSAM(alpha=0.2), augment=Augment(policy=AugMix()))
    assert recipe.sam != SAM()


def test_names_near_a_recipe_are_offered():
    with pytest.raises(RecipeError, match="no recipe is called 'swin_drloc'; did you mean .*swin_t_drloc"):
        get_recipe("swin_drloc")
