"""What does not fit is told before training, by the field to change; and what was chosen is what is built."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vtkernels.recipes import (
    SAM,
    SGD,
    Augment,
    AugMix,
    Classification,
    Consistency,
    Cosine,
    Data,
    FriendlySAM,
    LookSAM,
    Mixup,
    Model,
    PaddedCrop,
    Plateau,
    RandomAutoAugment,
    RandomErasing,
    RecipeError,
    Settings,
    Steps,
    build,
    get_recipe,
    plan,
    tiny,
)
from vtkernels.recipes._build import check
from vtkernels.recipes._task import Given

SMOKE = get_recipe("smoke")


def changed(section, **fields):
    return replace(SMOKE, **{section: replace(getattr(SMOKE, section), **fields)})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (changed("model", name="vit_nano"), "model.name must be one of .*did you mean"),
        (changed("model", name="bert_nano"), "model.name must be a model of images, got 'bert_nano'; bert_grey_nano_patch4_32 makes words of them"),
        (changed("model", num_classes=7), "model.num_classes must be 10, as many as digits has, got 7"),
        (changed("model", options={"initt": 1}), "model.options must be fields of vit_nano_patch4_32.*'initt'"),
        (changed("model", checkpoint="nowhere.safetensors"), "model.checkpoint must be weights that exist"),
        (changed("data", name="digts"), "data.name must be one of .*did you mean digits"),
        (changed("data", name="cifar10"), "data.path must be the folder with the files of cifar10, got None"),
        (changed("data", name="cifar10", path=__import__("pathlib").Path("nowhere")), "data.path must be .*'nowhere', which is no folder"),
        (changed("data", options={"colour": "red"}), "data.options must be options of the set.*colour"),
        (changed("data", size=30), "data.size must suit vit_nano_patch4_32, got 30"),
        (changed("data", valid_batch_size=-1), "data.valid_batch_size must be at least 1"),
        (changed("data", name="shapes", options={"task": "segmentation"}), "data must have one class for each image, got maps of classes in shapes"),
        (changed("data", batch_size=0), "data.batch_size must be at least 1"),
        (changed("data", batch_size=5000), "data.batch_size must be at most the training set's 1442"),
        (changed("data", fraction=0.0), "data.fraction must be above 0 and at most 1"),
        (changed("data", noise=float("nan")), "data.noise must be at least 0 and at most 1, got nan"),
        (changed("optim", lr=0.0), "optim.lr must be above 0"),
        (changed("schedule", warmup=5), "schedule.warmup must be shorter than the training of 5 epochs.*--train.epochs 6"),
        (changed("schedule", warmup_updates=10_000), "schedule.warmup_updates must be shorter"),
        (changed("model", drop_path=1.0), r"model.drop_path must lie in \[0, 1\), got 1.0"),
        (changed("data", train_split="trian"), "recipe: data: .*split must be one of .*got 'trian'"),
        (changed("optim", lr=float("inf")), "recipe: schedule: .*lr must be at least 0 and finite"),
        (changed("optim", betas=(2.0, 0.9)), "recipe: optim: .*beta"),
        (changed("schedule", cycles=0), "recipe: schedule: "),
        (changed("augment", crop=PaddedCrop(padding=-3)), "recipe: augment: .*padding must be an int from 0, got -3"),
        (changed("train", monitor="miou"), "train.monitor must be one of loss, top1, top5, got 'miou'"),
        (replace(SMOKE, erase=RandomErasing(prob=2.0)), "recipe: erase: .*prob"),
        (replace(SMOKE, sam=SAM(rho=-1.0)), "recipe: optim or sam: .*rho"),
        (replace(SMOKE, mix=Mixup(mixup=0.0, cutmix=0.0)), r"mix.mixup \+ mix.cutmix must be above 0"),
        (replace(SMOKE, task=Classification(loss=Consistency())), "augment.policy.views must be at least 2 with this loss"),
        (replace(SMOKE, augment=Augment(crop=PaddedCrop(), policy=AugMix())), "augment.policy.views must be 1 with this loss"),
    ],
)
def test_what_does_not_fit_is_told_before_training(recipe, message):
    with pytest.raises(RecipeError, match=message):
        build(recipe)


def test_splits_have_the_same_classes(tmp_path):
    for split, kinds in (("train", ("cat", "dog")), ("val", ("cat", "fox"))):
        for kind in kinds:
            (tmp_path / split / kind).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / split / kind / "0.png")
    with pytest.raises(RecipeError, match="data.valid_split must have the classes of the training set, in its order, got 'fox' in the place of 'dog'"):
        build(changed("data", name="folder", path=tmp_path, batch_size=2, normalize="half"))


def test_plans_know_names_that_nobody_published():
    with pytest.raises(RecipeError, match="data.name must be one of .*did you mean digits"):
        plan(changed("data", name="digts"))
    with pytest.raises(RecipeError, match="recipe: data: .*split"):
        plan(changed("data", train_split="trian"))


def test_batches_are_divided_among_processes_and_passes():
    recipe = replace(SMOKE, train=replace(SMOKE.train, accumulate=2))
    assert check(changed("data", batch_size=64), world=4) == 16
    assert check(recipe, world=4) == 4
    with pytest.raises(RecipeError, match="data.batch_size must be a multiple of 6, for 3 processes of 2 passes, got 32; try --data.batch-size 30"):
        check(recipe, world=3)
    with pytest.raises(RecipeError, match="data.batch_size must give each process an even batch"):
        check(replace(SMOKE, mix=Mixup(), data=replace(SMOKE.data, batch_size=6)), world=2)


def test_accumulated_passes_make_as_many_updates():
    whole = build(SMOKE)
    parts = build(replace(SMOKE, train=replace(SMOKE.train, accumulate=4)))
    assert whole.updates_per_epoch == parts.updates_per_epoch == 1442 // 32
    assert next(iter(parts.train_loader))[0].shape == (8, 3, 32, 32)


def test_smoothing_is_applied_once():
    recipe = replace(SMOKE, task=Classification(loss=replace(SMOKE.task.loss, smoothing=0.1)), mix=Mixup())
    trainer = build(recipe)
    images, targets = next(iter(trainer.train_loader))
    # 0.1 is spread over ten classes, in the targets alone
    assert targets.min() == pytest.approx(0.01)
    assert torch.allclose(targets.sum(1), torch.ones(len(targets)))
    assert trainer.task.criterion.label_smoothing == 0.0
    assert build(replace(recipe, mix=None)).task.criterion.label_smoothing == 0.1


def test_views_reach_the_consistency_loss():
    for policy in (AugMix(views=3), RandomAutoAugment(views=3)):
        recipe = replace(SMOKE, augment=Augment(crop=PaddedCrop(), policy=policy), task=Classification(loss=Consistency()))
        images, targets = next(iter(build(recipe).train_loader))
        assert images.shape == (96, 3, 32, 32)
        assert images.dtype == torch.float32
        assert not torch.equal(images[32:64], images[64:])
        # both kinds of policy leave the same normalised range
        assert images[:32].mean().abs() < 0.3


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (replace(SMOKE, optim=SGD(lr=0.1)), "SGD"),
        (replace(SMOKE, sam=LookSAM()), "LookSAM"),
        (replace(SMOKE, sam=FriendlySAM(), optim=SGD(lr=0.1)), "FriendlySAM"),
        (replace(SMOKE, schedule=Steps(at=(0.5,))), "AdamW"),
        (replace(SMOKE, schedule=Plateau()), "AdamW"),
    ],
)
def test_what_was_chosen_is_built(recipe, expected):
    trainer = build(recipe)
    assert type(trainer.optimizer).__name__ == expected
    assert trainer.schedule(45) == pytest.approx(recipe.optim.lr, rel=0.2)


def test_the_same_recipe_has_the_same_weights():
    first, second = (build(SMOKE).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build(replace(SMOKE, train=replace(SMOKE.train, seed=1))).model.state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_other_images_are_a_field_away():
    recipe = replace(SMOKE, data=Data(name="shapes", options={"count": 64}, size=32, batch_size=32, workers=0, normalize="set"))
    trainer = build(recipe)
    assert trainer.model.num_classes == 8
    assert len(trainer.train_loader) == 2


def test_noisy_labels_are_those_of_training_only():
    train, valid = changed("data", noise=0.5).data.datasets()
    assert 0.35 < train.changed.mean() < 0.55
    assert not hasattr(valid, "changed")


def test_a_task_without_data_or_memory():
    with torch.device("meta"):
        model = Model(name="swin_nano_patch4_window4_32").build(32, 10)
        task = get_recipe("demo").task.build(Given(model, 10, False, 1))
    assert {param.device.type for param in task.parameters()} == {"meta"}


def test_schedules_may_end_after_the_training():
    recipe = replace(SMOKE, schedule=Cosine(span=10), train=Settings(epochs=5))
    assert build(recipe).schedule(5 * 45) == pytest.approx(recipe.optim.lr / 2)


def test_tiny_keeps_what_the_recipe_does():
    for name in ("swin_t_drloc", "vit_sam", "augmix_cifar", "swin_small_data", "deit"):
        full, small = get_recipe(name), tiny(get_recipe(name))
        for section in ("mix", "erase", "sam"):
            assert getattr(full, section) == getattr(small, section)
        assert type(full.task) is type(small.task)
        assert full.augment.policy == small.augment.policy
        assert small.data.name == "digits"
    assert tiny(get_recipe("swin_t_drloc")).task.span == pytest.approx(300 * 10 / 101)
