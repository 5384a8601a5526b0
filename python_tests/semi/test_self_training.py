"""Noisy Student from end to end: a clean teacher, noisy students, and going on within and between cycles as if nothing had happened."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from plans import short_plan, short_recipe
from torch import nn

from vtkernels.data import PseudoLabels, StreamTargets, TwoStreams
from vtkernels.losses import cross_entropy
from vtkernels.models import create_model
from vtkernels.recipes import PseudoLabelled, Recipe, RecipeError, SelfTraining, build, get_recipe, self_train, tiny
from vtkernels.recipes._self_training import _probabilities
from vtkernels.train import Interrupted, NoisyStudentTask, Observer


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A plan that nobody stopped, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        # as in each test: what is measured may choose other kernels from run to run
        patch.setenv("VTKERNELS_MEASURE", "0")
        return folder, self_train(short_plan(), folder)


class StopAt(Observer):
    """SIGTERM after some updates of all runs together."""

    def __init__(self, left: list[int]):
        self.left = left

    def on_step(self, record):
        self.left[0] -= 1
        if self.left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def weights(folder):
    return {path.parent.relative_to(folder): path.read_bytes() for path in folder.rglob("final/model.safetensors")}


def test_every_stage_leaves_what_the_next_one_needs(done):
    folder, rows = done
    assert [row["stage"] for row in rows] == ["teacher", "cycle-1", "cycle-2"]
    assert json.loads((folder / "summary.json").read_text()) == rows
    assert SelfTraining.load(folder) == short_plan()
    labels = PseudoLabels.load(folder / "cycle-2" / "pseudo_labels.npz")
    assert labels.about["teacher"] == str(folder / "cycle-1" / "student" / "final")
    # 5 % of 1442 have labels
    assert labels.pool == len(labels) == 1442 - 72
    student = Recipe.load(folder / "cycle-1" / "student")
    assert isinstance(student.unlabelled, PseudoLabelled)
    teacher = Recipe.load(folder / "teacher")
    assert teacher.unlabelled is None
    assert teacher.task.smoothing == student.task.smoothing == 0.1
    assert len({Recipe.load(path.parent).train.seed for path in folder.rglob("recipe.json")}) == 3


def test_labels_are_those_of_the_averaged_last_weights_on_clean_images(done):
    folder, rows = done
    recipe = Recipe.load(folder / "cycle-1" / "student")
    labels = PseudoLabels.load(folder / "cycle-1" / "pseudo_labels.npz")
    model = create_model(checkpoint=str(folder / "teacher" / "final"))
    # a mode that the caller forgot must not matter, nor any generator
    model.train()
    torch.manual_seed(5)
    found = _probabilities(model, recipe.unlabelled.images(recipe.data), recipe, torch.device("cpu"))
    assert torch.equal(found, torch.from_numpy(labels.probabilities))
    truth = recipe.unlabelled.images(recipe.data).targets
    assert rows[1]["pseudo_labels"]["right"] == pytest.approx((labels.label == truth).mean())


def test_a_teacher_is_neither_noisy_nor_changed():
    recipe = short_recipe("efficientnet_nano")
    model = create_model("efficientnet_nano", num_classes=10, dropout=0.5, drop_path=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = []
    noisy = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.Dropout) or "Drop" in type(module).__name__]
    assert len({type(module) for module in noisy}) >= 2
    for module in noisy:
        module.register_forward_hook(lambda module, given, answer: modes.append(module.training))
    pool = recipe.unlabelled.images(recipe.data)
    one, other = (_probabilities(model, pool, recipe, torch.device("cpu")) for _ in range(2))
    assert torch.equal(one, other)
    assert modes
    assert not any(modes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_students_batch_is_labelled_images_and_ratio_times_as_many_noisy_ones(done):
    folder, _ = done
    trainer = build(Recipe.load(folder / "cycle-1" / "student"))
    assert isinstance(trainer.train_loader, TwoStreams)
    trainer.module.train()
    assert all(module.training for module in trainer.model.modules())
    images, targets = next(iter(trainer.train_loader))
    assert images.shape == (16 + 2 * 16, 3, 16, 16)
    assert targets.labelled.shape == (16,)
    assert targets.unlabelled.shape == (32, 10)
    assert torch.allclose(targets.unlabelled.sum(1), torch.ones(32), atol=1e-5)
    stream = trainer.train_loader._unlabelled.loader.samples.dataset
    assert stream.labels.counts().max() == 40


@pytest.mark.parametrize("stop_after", [3, 8, 14])
def test_what_was_stopped_goes_on_to_the_same_weights(stop_after, done, tmp_path):
    """Eight updates a stage: the stops lie in each of the three runs, and at their ends."""
    left = [stop_after]
    with pytest.raises(Interrupted):
        self_train(short_plan(), tmp_path, observers=lambda folder: [StopAt(left)])
    left[0] = -1
    told = []
    rows = self_train(SelfTraining.load(tmp_path), tmp_path, observers=lambda folder: told.append(folder.name) or [])
    assert [{**row, "pseudo_labels": None} for row in rows] == [{**row, "pseudo_labels": None} for row in done[1]]
    assert weights(tmp_path) == weights(done[0])
    # what was done before was not begun again
    assert len(told) == 3 - (stop_after - 1) // 8


def test_what_is_done_is_not_done_again(done):
    folder, rows = done
    assert self_train(SelfTraining.load(folder), folder, observers=lambda folder: pytest.fail("nothing is left")) == rows


def test_hard_labels_and_a_teacher_that_is_there(done, tmp_path):
    folder, _ = done
    plan = replace(short_plan(cycles=1, form="hard"), teacher=str(folder / "teacher" / "final"))
    rows = self_train(plan, tmp_path)
    assert [row["stage"] for row in rows] == ["cycle-1"]
    assert PseudoLabels.load(tmp_path / "cycle-1" / "pseudo_labels.npz").probabilities is None


def test_the_loss_weighs_each_image_alike():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4 + 12, 3, 32, 32, generator=generator)
    model = create_model("vit_nano_patch4_32", num_classes=10)
    soft = torch.randn(12, 10, generator=generator).softmax(1)
    classes = torch.tensor([1, 0, 9, 3])
    outcome = NoisyStudentTask(model)(images, StreamTargets(classes, soft))
    logits = model(images)
    smooth = torch.full((4, 10), 0.01).scatter(1, classes[:, None], 0.91)
    expected = cross_entropy(logits[:4], smooth) + 3 * cross_entropy(logits[4:], soft)
    torch.testing.assert_close(outcome.loss, expected)
    assert outcome.logs["agreement"] == (logits[4:].argmax(1) == soft.argmax(1)).float().mean()
    with pytest.raises(TypeError, match="targets must be StreamTargets, got Tensor"):
        NoisyStudentTask(model)(images[:4], classes)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (SelfTraining(recipe=get_recipe("smoke")), "task must be a noisy student, with pseudo-labelled images, got Classification"),
        (short_plan(cycles=0), "--cycles must be at least 1, got 0; change it with --cycles"),
        (replace(short_plan(), students=("a", "b", "c")), "at most one model for each of 2 cycles"),
        (replace(short_plan(), students=("vit_nanoo",)), "model.name must be one of .*did you mean"),
        (replace(short_plan(), teacher_model="vit_tiny_patch16_224"), "at least as large as their teachers: vit_tiny_patch16_224 has 5,717,416"),
        (replace(short_plan(), teacher="nowhere"), "task.teacher must be weights that can be loaded, got 'nowhere'; .*no such file"),
        (short_plan(confidence=1.0), "unlabelled.confidence must leave some pseudo-labels, got 1.0; the highest is 0"),
    ],
)
def test_plans_that_cannot_be_are_refused(plan, message, tmp_path, done):
    if plan.recipe.unlabelled and plan.recipe.unlabelled.confidence == 1.0:
        plan = replace(plan, teacher=str(done[0] / "teacher" / "final"))
    with pytest.raises(RecipeError, match=message):
        self_train(plan, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: replace(recipe, unlabelled=replace(recipe.unlabelled, labels=None)), "unlabelled.labels must be a file of pseudo-labels, got None"),
        (lambda recipe: replace(recipe, data=replace(recipe.data, fraction_seed=3)), "unlabelled.labels must be of the images .*'seed': 3.*got .*'seed': 0"),
        (lambda recipe: replace(recipe, data=replace(recipe.data, fraction=1.0)), "unlabelled.labels must be of the images"),
        (lambda recipe: replace(recipe, unlabelled=None), "unlabelled must be pseudolabelled for this task, got none"),
        (lambda recipe: replace(recipe, task=get_recipe("smoke").task), "unlabelled must be none for this task, got pseudolabelled"),
        (lambda recipe: replace(recipe, mix=get_recipe("deit").mix), "mix must be none beside unlabelled images, got Mixup"),
        (lambda recipe: replace(recipe, unlabelled=replace(recipe.unlabelled, ratio=50)), "unlabelled.ratio must make batches that the pool's 84 images fill"),
        (lambda recipe: replace(recipe, unlabelled=replace(recipe.unlabelled, ratio=0)), "unlabelled.ratio must be at least 1"),
        (lambda recipe: replace(recipe, unlabelled=replace(recipe.unlabelled, confidence=float("nan"))), "unlabelled.confidence must be at least 0"),
        (lambda recipe: replace(recipe, augment=get_recipe("augmix_cifar").augment), "augment.policy must make one view"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change, message, done):
    with pytest.raises(RecipeError, match=message.replace("84", r"\d+")):
        build(change(Recipe.load(done[0] / "cycle-1" / "student")))


def test_an_own_pool_is_needed_where_all_images_have_labels(tmp_path):
    plan = SelfTraining(recipe=replace(short_recipe(), data=replace(short_recipe().data, fraction=1.0)), teacher="new:vit_nano_patch4_32")
    with pytest.raises(RecipeError, match="data.fraction must leave out images .*--unlabelled.name"):
        self_train(plan, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: replace(plan, recipe=replace(plan.recipe, data=replace(plan.recipe.data, fraction=1.0))), "data.fraction must leave out images"),
        (lambda plan: replace(plan, recipe=replace(plan.recipe, unlabelled=replace(plan.recipe.unlabelled, name="svhn"))), "data.path must be the folder"),
        (lambda plan: replace(plan, students=("vit_nano_patch4_32", "vit_small_patch14_224")), "data.size must suit vit_small_patch14_224, got 16"),
    ],
)
def test_what_no_student_can_do_is_told_before_the_teacher_is_trained(change, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        self_train(change(short_plan()), tmp_path)
    assert not any(tmp_path.iterdir())


def test_tiny_recipes_of_all_students_have_a_pool():
    for name in ("noisy_student", "noisy_student_svhn"):
        small = tiny(get_recipe(name))
        assert small.unlabelled.name is None
        assert small.data.fraction == 0.1
        assert small.model.name == "efficientnet_nano"
        assert small.unlabelled.ratio == get_recipe(name).unlabelled.ratio
