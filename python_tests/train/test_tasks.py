"""Losses that tasks add up, and what they count."""

import copy

import pytest
import torch
from runs import CLASSES, Noise, loader, rich_task, sam, tiny_model, tiny_task, trainer
from torch import nn
from torch.nn import functional as F

import vtkernels as vt
from vtkernels.train import ClassificationTask, DistillationTask, DrlocTask
from vtkernels.train.task import classification_sums

DATA = Noise(6)
IMAGES, TARGETS = DATA.images, torch.tensor(DATA.targets)

# logits of a student and of a teacher
Z = torch.tensor([[1, 2, -1, 0.5], [0.2, -0.3, 0.7, 1.1]], dtype=torch.float64)
T = torch.tensor([[0.5, 1.5, 0, -1], [1, 0, 0.2, 2]], dtype=torch.float64)


class Fixed(nn.Module):
    """Answers with the same logits whatever it sees."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_classification_of_classes_and_of_probabilities():
    task = tiny_task()
    outcome = task(IMAGES, TARGETS, 0.0)
    torch.testing.assert_close(outcome.loss, F.cross_entropy(task.model(IMAGES), TARGETS))
    assert outcome.features.shape == (6, 5, 16)
    soft = F.one_hot(TARGETS, CLASSES).float()
    torch.testing.assert_close(task(IMAGES, soft, 0.0).loss, outcome.loss)
    # models that are not ours have no features to give
    plain = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)))
    assert plain(IMAGES, TARGETS, 0.0).features is None


def test_sums_count_what_is_right():
    logits = torch.tensor([[5.0, 1, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4], [0, 9, 1, 1, 1, 1.5]])
    targets = torch.tensor([0, 1, 5])
    sums = classification_sums(logits, targets)
    assert [(float(value), count) for value, count in (sums["top1"], sums["top5"])] == [(1.0, 3), (2.0, 3)]
    torch.testing.assert_close(sums["loss"][0] / 3, F.cross_entropy(logits, targets))
    soft = classification_sums(logits, F.one_hot(targets, 6).float())
    assert soft["top1"][0] == 1
    # of fewer than five classes all are among the first five
    assert classification_sums(logits[:, :2], torch.tensor([0, 0, 1]))["top5"][0] == 3


def test_consistency_of_views():
    task = ClassificationTask(tiny_model(), vt.losses.AugMixLoss(3, 12.0))
    views = torch.cat([IMAGES, IMAGES.flip(3), IMAGES + 0.1])
    expected = vt.augmix_loss(task.model(views), TARGETS, num_views=3, weight=12.0)
    torch.testing.assert_close(task(views, TARGETS, 0.0).loss, expected)
    assert task.evaluate(IMAGES, TARGETS)["top1"][1] == 6


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "swin_nano_patch4_window4_32", "cait_nano_patch4_32", "resnet8_nano"])
def test_drloc_of_maps_and_of_tokens(name):
    task = DrlocTask(ClassificationTask(vt.create_model(name, num_classes=CLASSES)))
    images = torch.randn(2, 3, 32, 32)
    assert task(images, TARGETS[:2], 0.0).logs["drloc"] == 0
    outcome = task(images, TARGETS[:2], 20.0)
    # the weight is at its largest at the end of the warm-up
    assert 0 < outcome.logs["drloc"] < 1
    outcome.loss.backward()
    assert all(param.grad is not None for param in task.drloc.parameters())
    assert task.evaluate(images, TARGETS[:2]).keys() == {"loss", "top1", "top5"}
    assert task.model is task.inner.model


def test_the_last_map_is_the_patches_in_rows():
    task = DrlocTask(ClassificationTask(tiny_model(img_size=(8, 12))))
    images = torch.randn(2, 3, 8, 12)
    features = task.model.forward_features(images)
    found = task._last_map(images, features)
    assert found.shape == (2, 16, 2, 3)
    torch.testing.assert_close(found[:, :, 1, 0], features[:, 1 + 3])


def test_drloc_says_what_it_needs():
    with pytest.raises(ValueError, match="create_model"):
        DrlocTask(ClassificationTask(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="bchw"):
        DrlocTask(tiny_task(), vt.losses.DrlocLoss(16))


def test_heads_of_a_loss_are_trained_with_the_model():
    task = rich_task()
    before = copy.deepcopy(task.state_dict())
    trainer(None, task, sam).fit()
    assert any(name.startswith("drloc.heads") for name in before)
    assert all(not torch.equal(value, before[name]) for name, value in task.state_dict().items() if name.endswith("weight"))


@pytest.mark.parametrize(("mean", "golden"), [("samples", 0.22387989700829003), ("elements", 0.05596997425207251)])
def test_soft_distillation_golden(mean, golden):
    task = DistillationTask(ClassificationTask(Fixed(Z)), Fixed(T), "soft", temperature=3.0, mean=mean)
    assert task.distance(Z, T).item() == pytest.approx(golden, rel=1e-12)
    assert task.distance(T, T).item() == pytest.approx(0.0, abs=1e-15)


def test_gradient_of_soft_distillation():
    student = Z.clone().requires_grad_()
    task = DistillationTask(ClassificationTask(Fixed(Z)), Fixed(T), "soft", temperature=3.0)
    (gradient,) = torch.autograd.grad(task.distance(student, T), student)
    torch.testing.assert_close(gradient, 3.0 * (F.softmax(Z / 3, 1) - F.softmax(T / 3, 1)) / 2)


def test_hard_distillation_is_a_mean_of_two_cross_entropies():
    labels = torch.tensor([1, 3])
    task = DistillationTask(ClassificationTask(Fixed(Z.float())), Fixed(T.float()), alpha=0.25)
    outcome = task(IMAGES[:2], labels, 0.0)
    expected = 0.75 * F.cross_entropy(Z.float(), labels) + 0.25 * F.cross_entropy(Z.float(), T.argmax(1))
    torch.testing.assert_close(outcome.loss, expected)


def test_the_distillation_token_learns_from_the_teacher():
    student, teacher = tiny_model(distilled=True), tiny_model(depth=1)
    task = DistillationTask(ClassificationTask(student), teacher).train()
    outcome = task(IMAGES, TARGETS, 0.0)
    outcome.loss.backward()
    features = student.forward_features(IMAGES)
    wanted = teacher(IMAGES).argmax(1)
    expected = F.cross_entropy(student.head(features[:, 0]), TARGETS) + F.cross_entropy(student.head_dist(features[:, 1]), wanted)
    torch.testing.assert_close(outcome.loss, expected / 2)
    task.eval()
    mean = (student.head(features[:, 0]) + student.head_dist(features[:, 1])) / 2
    torch.testing.assert_close(task.evaluate(IMAGES, TARGETS)["loss"][0], F.cross_entropy(mean, TARGETS, reduction="sum"))


def test_the_teacher_is_no_part_of_the_task():
    teacher = tiny_model(drop_path=0.9, depth=3).train()
    task = DistillationTask(tiny_task(), teacher)
    assert not any("teacher" in name for name in task.state_dict())
    assert {id(param) for param in task.parameters()}.isdisjoint(map(id, teacher.parameters()))
    before = copy.deepcopy(teacher.state_dict())
    trainer(None, task).fit()
    assert not teacher.training
    assert all(torch.equal(value, before[name]) and not value.requires_grad for name, value in teacher.state_dict().items())
    # it goes where the student goes
    assert next(task.double().teacher.parameters()).dtype == torch.float64


def test_distillation_says_what_it_needs():
    with pytest.raises(ValueError, match="hard, soft"):
        DistillationTask(tiny_task(), tiny_model(), "both")
    with pytest.raises(ValueError, match="same classes"):
        DistillationTask(tiny_task(), tiny_model(num_classes=7))(IMAGES, TARGETS, 0.0)
    with pytest.raises(ValueError, match="alpha"):
        DistillationTask(tiny_task(), tiny_model(), alpha=1.5)


def test_evaluation_mode_in_training():
    task = ClassificationTask(tiny_model(drop_path=0.9, dropout=0.9), eval_mode=True)
    before = copy.deepcopy(task.state_dict())
    assert task.train().training and not task.model.training
    assert task(IMAGES, TARGETS, 0.0).loss == task(IMAGES, TARGETS, 0.0).loss
    trainer(None, task, train=loader(8, 4)).fit()
    assert not torch.equal(task.model.head.weight, before["model.head.weight"])
