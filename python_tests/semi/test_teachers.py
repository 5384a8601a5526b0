"""Distillation from whatever holds weights: runs, files, models of timm's."""

from dataclasses import replace

import pytest
import torch
from optional import peer

from vtkernels.data.datasets import Statistics
from vtkernels.models import create_model
from vtkernels.models._checkpoint import save_model
from vtkernels.recipes import Distillation, RecipeError, build, get_recipe, plan, tiny
from vtkernels.recipes._plan import memory_of, task_without_memory
from vtkernels.recipes._task import Given, holder_of
from vtkernels.recipes._teacher import teacher

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
GIVEN = Given(None, 10, False, 1, 32)
# by which images of 32 pixels are normalised
DIGITS = Statistics((0.305,) * 3, (0.324,) * 3)
HALF = Statistics((0.5,) * 3, (0.5,) * 3)


def distilling(source, architecture=None, **options):
    smoke = get_recipe("smoke")
    return replace(smoke, task=Distillation(inner=smoke.task, teacher=str(source), teacher_model=architecture, **options))


@pytest.fixture
def saved(tmp_path):
    """A teacher with a config beside it, as a run leaves it."""
    model = create_model("resnet_nano", num_classes=10)
    model.statistics = DIGITS
    save_model(model, tmp_path / "weights")
    return model.eval(), tmp_path


def test_the_folder_of_a_run_tells_its_model(saved):
    model, folder = saved
    found = teacher(str(folder), None, GIVEN)
    assert torch.equal(found(IMAGES), model(IMAGES))
    assert not any(param.requires_grad for param in found.parameters())


def test_a_file_of_timms_weights_for_a_model_of_ours(tmp_path):
    peer("timm")
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(img_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=2, num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    found = teacher(str(tmp_path / "timm.pth"), "vit_nano_patch4_32", GIVEN)
    torch.testing.assert_close(found(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match="task.teacher_model must name the model whose weights"):
        teacher(str(tmp_path / "timm.pth"), None, GIVEN)
    with pytest.raises(RecipeError, match="task.teacher_model must be one of .*did you mean"):
        teacher(str(tmp_path / "timm.pth"), "vit_nano", GIVEN)


def test_a_model_that_only_timm_has(tmp_path):
    timm = peer("timm")
    theirs = timm.create_model("test_resnet", num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    found = teacher(str(tmp_path / "timm.pth"), "timm:test_resnet", GIVEN)
    assert torch.equal(found(IMAGES), theirs(IMAGES))
    trainer = build(distilling(tmp_path / "timm.pth", "timm:test_resnet", teacher_normalize="student", form="soft", temperature=4.0, alpha=0.9))
    images, targets = next(iter(trainer.train_loader))
    trainer.module.train()
    outcome = trainer.module(images, targets, 0.0)
    student, told = outcome.logits, theirs(images)
    divergence = torch.nn.functional.kl_div((student / 4).log_softmax(1), (told / 4).softmax(1), reduction="batchmean")
    expected = 0.1 * torch.nn.functional.cross_entropy(student, targets) + 0.9 * 16 * divergence
    torch.testing.assert_close(outcome.loss, expected)
    with pytest.raises(RecipeError, match="task.teacher must be weights that can be loaded"):
        teacher(str(tmp_path / "timm.pth"), "timm:no_such_model", GIVEN)


def test_a_teacher_is_clean_frozen_and_nobodys_weights(saved):
    model, folder = saved
    trainer = build(distilling(folder))
    trainer.module.train()
    known = trainer.task.teacher
    assert not any(module.training for module in known.modules())
    trainer.settings = replace(trainer.settings, epochs=1)
    before = {name: value.clone() for name, value in known.state_dict().items()}
    for _, (images, targets) in zip(range(2), trainer.train_loader, strict=False):
        trainer._update([(images, targets)], 0.0)
    assert all(torch.equal(value, before[name]) for name, value in known.state_dict().items())
    held = {id(param) for group in trainer.optimizer.param_groups for param in group["params"]}
    assert not held & {id(param) for param in known.parameters()}
    assert len(trainer.task.state_dict()) == len(trainer.model.state_dict())


def test_a_teacher_sees_images_normalised_as_it_knows_them(saved):
    model, folder = saved
    raw = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in DIGITS)
    found = teacher(str(folder), None, GIVEN._replace(statistics=HALF))
    torch.testing.assert_close(found((raw - 0.5) / 0.5), model((raw - mean) / std))
    assert not list(found.parameters())[0].requires_grad
    # of the same statistics nothing is changed, nor where it is told so
    assert type(teacher(str(folder), None, GIVEN._replace(statistics=DIGITS))) is type(model)
    assert type(teacher(str(folder), None, GIVEN._replace(statistics=HALF), "student")) is type(model)
    told = teacher(str(folder), None, GIVEN._replace(statistics=DIGITS), "none")
    torch.testing.assert_close(told((raw - mean) / std), model(raw))


def test_weights_that_do_not_tell_how_images_were_normalised_are_refused(tmp_path):
    torch.save(create_model("resnet_nano", num_classes=10).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(
        RecipeError, match=r"task.teacher_normalize must be told, since .*bare.pth does not say .*--task.teacher-normalize imagenet, half or none"
    ):
        build(distilling(tmp_path / "bare.pth", "resnet_nano"))
    assert build(distilling(tmp_path / "bare.pth", "resnet_nano", teacher_normalize="imagenet")).task.teacher.model.num_classes == 10


def test_the_weights_of_a_run_tell_how_its_images_were_normalised(tmp_path):
    smoke = get_recipe("smoke")
    data = replace(smoke.data, fraction=0.1, normalize="half")
    trainer = build(replace(smoke, data=data, train=replace(smoke.train, epochs=1), schedule=replace(smoke.schedule, warmup=0)), folder=tmp_path)
    trainer.fit()
    assert create_model(checkpoint=tmp_path).statistics == HALF
    assert build(distilling(tmp_path)).task.teacher.factor.flatten().tolist() == pytest.approx([0.324 / 0.5] * 3)


def test_timms_card_tells_how_images_were_normalised():
    peer("timm")
    from vtkernels.recipes._teacher import _statistics

    assert _statistics(None, "timm:vit_base_patch16_224.augreg_in21k") == HALF
    assert _statistics(None, "timm:regnety_160.deit_in1k").mean == (0.485, 0.456, 0.406)
    assert _statistics(None, "timm:no_such_model.at_all") is None


def test_a_distillation_token_learns_from_the_teacher(saved):
    trainer = build(replace(distilling(saved[1]), model=replace(get_recipe("smoke").model, options={"distilled": True})))
    trainer.module.train()
    images, targets = next(iter(trainer.train_loader))
    outcome = trainer.module(images, targets, 0.0)
    told = saved[0](images).argmax(1)
    expected = 0.5 * (torch.nn.functional.cross_entropy(outcome.logits, targets) + torch.nn.functional.cross_entropy(outcome.distilled, told))
    torch.testing.assert_close(outcome.loss, expected)


def test_a_plan_needs_no_teacher():
    task = task_without_memory(get_recipe("deit_distilled"), 1000)
    assert {param.device.type for param in task.parameters()} == {"meta"}


def test_a_plan_counts_the_teacher():
    recipe = get_recipe("kd")
    student, teacher = (create_model(name) for name in ("resnet18", "resnet34"))
    of_student, of_teacher = (sum(param.numel() for param in model.parameters()) for model in (student, teacher))
    task = task_without_memory(recipe, 1000)
    assert sum(param.numel() for param in holder_of("teacher", task).teacher.parameters()) == of_teacher
    # weights, gradients and velocity of the student, weights of the teacher
    assert memory_of(recipe, task, task.teacher, 1, 1000).state == 4 * (3 * of_student + of_teacher)
    lines = dict(line.split(maxsplit=1) for line in plan(recipe).splitlines())
    assert lines["teacher"] == "timm:resnet34.tv_in1k, 21.80 M parameters, 3.66 G multiply-adds an image forward"
    unknown = plan(replace(recipe, task=replace(recipe.task, teacher="weights.pth")))
    assert "whose architecture is not known here: neither its memory nor its work is counted" in unknown
    assert "teacher    not given yet" in plan(get_recipe("kd_cifar"))


def test_a_plan_counts_a_teacher_that_only_timm_has():
    peer("timm")
    lines = dict(line.split(maxsplit=1) for line in plan(get_recipe("deit_distilled")).splitlines())
    assert lines["teacher"].startswith("timm:regnety_160.deit_in1k, 83.59 M parameters, 15.9")


@pytest.mark.parametrize("name", ["kd", "kd_hard", "deit_distilled", "deit_distilled_soft"])
def test_tiny_recipes_need_no_weights(name):
    recipe = tiny(get_recipe(name))
    trainer = build(replace(recipe, augment=replace(recipe.augment, repeats=1)))
    trainer.module.train()
    images, targets = next(iter(trainer.train_loader))
    assert trainer.module(images, targets, 0.0).loss.isfinite()
    assert trainer.task.form == get_recipe(name).task.form
    # the token is part of what the variant is
    assert getattr(trainer.model.config, "distilled", False) == (name == "deit_distilled")


def test_teachers_that_do_not_fit_are_told_by_the_field(saved, tmp_path):
    with pytest.raises(RecipeError, match="task.teacher must be weights, got None; --task.teacher FOLDER"):
        teacher(None, None, GIVEN)
    with pytest.raises(RecipeError, match="task.teacher must be weights that can be loaded, got 'nowhere'; .*no such file"):
        teacher("nowhere", None, GIVEN)
    with pytest.raises(RecipeError, match=r"task.teacher must know the 7 classes of the data, got answers of shape \[1, 10\]"):
        teacher(str(saved[1]), None, GIVEN._replace(num_classes=7))
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    with pytest.raises(RecipeError, match="task.teacher must be weights that can be loaded.*damaged"):
        teacher(str(tmp_path / "damaged.pth"), "resnet_nano", GIVEN)
    with pytest.raises(RecipeError, match="task.teacher must be weights that can be loaded.*no model is called 'vit_nan'"):
        teacher("new:vit_nan", None, GIVEN)
    save_model(create_model("vit_nano_patch4_32", num_classes=10), tmp_path / "vit")
    with pytest.raises(RecipeError, match="data.size must suit the teacher, got 48"):
        teacher(str(tmp_path / "vit"), None, GIVEN._replace(size=48))
    save_model(create_model("resnet_nano", num_classes=7), tmp_path / "seven")
    with pytest.raises(RecipeError, match="task.teacher must have all weights of its model"):
        teacher(str(tmp_path / "seven"), "resnet_nano", GIVEN)
    with pytest.raises(RecipeError, match="task.temperature must be above 0"):
        build(distilling(saved[1], temperature=0.0))
