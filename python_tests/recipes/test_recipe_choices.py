"""What single recipes ask for: attacks, frozen parts, labels by a model, mixing that ends, binary targets."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vtkernels.data.datasets import Statistics
from vtkernels.recipes import (
    Adversarial,
    AttentionOnly,
    BinaryCrossEntropy,
    Bootstrap,
    Classification,
    CrossEntropy,
    HeadOnly,
    Mixup,
    Model,
    RecipeError,
    build,
    get_recipe,
    plan,
    tiny,
)
from vtkernels.recipes._commands import commands
from vtkernels.recipes._plan import task_without_memory
from vtkernels.train import AdversarialTask, ClassificationTask

SMOKE = get_recipe("smoke")
SHORT = replace(SMOKE, data=replace(SMOKE.data, fraction=0.1), train=replace(SMOKE.train, epochs=1), schedule=replace(SMOKE.schedule, warmup=0))


def mixed(**options):
    return replace(SHORT, mix=Mixup(**options))


def test_mixing_ends_at_its_epoch():
    loader = build(mixed(off_epoch=1, mixup=10.0, cutmix=0.0)).train_loader
    for epoch, is_mixed in ((0, True), (1, False), (2, False), (0, True)):
        loader.set_epoch(epoch)
        _, targets = next(iter(loader))
        assert targets.shape == (32, 10)
        # of two classes there are two positive targets in most rows
        assert bool((targets.gt(0).sum(1) > 1).any()) is is_mixed


def test_off_epoch_shrinks_with_the_training():
    assert tiny(get_recipe("cct")).mix.off_epoch == round(175 * 10 / 310)
    assert tiny(get_recipe("deit")).mix.off_epoch is None


def test_binary_targets_of_mixed_images_have_both_classes():
    trainer = build(replace(mixed(), task=Classification(loss=BinaryCrossEntropy())))
    targets = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]])
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, -0.3]])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    torch.testing.assert_close(trainer.task.criterion(logits, targets), expected)
    with pytest.raises(RecipeError, match="task.loss.threshold must be above the smoothed targets .* got 0.0; .*--task.loss.smoothing 0"):
        build(replace(mixed(), task=Classification(loss=BinaryCrossEntropy(smoothing=0.1))))


def test_only_the_head_learns_and_nothing_else_moves():
    recipe = replace(SHORT, model=replace(SHORT.model, trained=HeadOnly(), drop_path=0.5), task=Classification(eval_mode=True))
    trainer = build(recipe)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}
    # nothing is dropped: two passes give the same
    trainer.task.train()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trainer.model(images), trainer.model(images), rtol=0, atol=0)


def test_frozen_statistics_stay():
    recipe = replace(SHORT, model=Model(name="resnet8_nano", trained=HeadOnly()))
    trainer = build(recipe)
    before = {name: value.clone() for name, value in trainer.model.named_buffers()}
    trainer.fit()
    assert before
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_buffers())


def test_attention_alone_learns():
    task = task_without_memory(replace(SMOKE, model=replace(SMOKE.model, trained=AttentionOnly())), 10)
    learning = {name for name, param in task.model.named_parameters() if param.requires_grad}
    parts = {"blocks.0.attn.qkv.weight", "blocks.1.attn.proj.bias", "pos_embed", "head.weight", "head.bias"}
    assert parts <= learning
    assert all(".attn." in name or name in ("pos_embed", "head.weight", "head.bias") for name in learning)
    with pytest.raises(RecipeError, match="model.trained must be another choice for a model without attention"):
        build(replace(SHORT, model=Model(name="resnet8_nano", trained=AttentionOnly())))


def test_fine_tuning_needs_its_weights_but_a_plan_does_not():
    recipe = replace(SHORT, model=replace(SHORT.model, checkpoint="runs/nobody"))
    with pytest.raises(RecipeError, match="model.checkpoint must be weights that exist, got 'runs/nobody'"):
        build(recipe)
    assert "vit_nano_patch4_32" in plan(recipe)


class Linear(torch.nn.Module):
    """Its gradient with respect to the image does not depend on the image."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def test_adversarial_images_are_the_worst_of_the_ball():
    statistics = Statistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    pixels = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    targets = torch.tensor([0, 1, 1, 0])
    task = AdversarialTask(ClassificationTask(Linear()), 0.05, statistics, step=0.02, steps=7)
    images = (pixels - mean) / std
    moved = task.moved(images, targets) * std + mean
    # of two classes the loss rises where the other class's score does
    toward = (task.model.weight[1 - targets] - task.model.weight[targets]).view(4, 3, 2, 2).sign()
    torch.testing.assert_close(moved, pixels + 0.05 * toward)
    assert task(images, targets).loss > task.inner(images, targets).loss
    # evaluation is not attacked, and weights got no gradient from the attack
    torch.testing.assert_close(task.evaluate(images, targets)["loss"][0] / 4, task.inner(images, targets).loss)
    assert task.model.weight.grad is None


@pytest.mark.parametrize("eval_mode", [False, True])
def test_the_mode_is_as_before_the_attack(eval_mode):
    task = AdversarialTask(ClassificationTask(Linear()), 0.1, eval_mode=eval_mode, steps=1).train()
    task(torch.rand(2, 3, 2, 2), torch.tensor([0, 1]))
    assert task.model.training
    assert task.model.drop.training


def test_adversarial_takes_the_statistics_of_its_data():
    trainer = build(replace(SHORT, task=Adversarial(steps=1)))
    train, _ = SHORT.data.datasets()
    torch.testing.assert_close(trainer.task.mean.flatten(), torch.tensor(train.statistics.mean))
    assert not any("mean" in name for name in trainer.task.state_dict())


def test_second_training_learns_what_the_first_one_said(tmp_path):
    noisy = replace(SHORT, data=replace(SHORT.data, noise=0.6))
    first = build(noisy, folder=tmp_path / "first")
    first.fit()
    relabelled, valid = replace(noisy.data, relabel=Bootstrap(run=str(tmp_path / "first"))).datasets()
    before, _ = noisy.data.datasets()
    assert (relabelled.targets != before.targets).any()
    first.task.eval()
    shown = torch.stack([torch.from_numpy(before.image(i)).permute(2, 0, 1).float() / 255 for i in range(20)])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in before.statistics)
    assert first.model((shown - mean) / std).argmax(1).tolist() == relabelled.targets[:20].tolist()
    # the images that judge keep their labels
    assert (valid.targets == SMOKE.data.datasets()[1].targets).all()
    # a second training may normalise otherwise: the first one's model sees what it knows
    again, _ = replace(noisy.data, normalize="half", relabel=Bootstrap(run=str(tmp_path / "first"))).datasets()
    assert (again.targets == relabelled.targets).all()
    with pytest.raises(RecipeError, match="data.relabel.run must be the run whose model tells the labels, got 'nowhere'"):
        replace(noisy.data, relabel=Bootstrap(run="nowhere")).datasets()


def test_commands_make_the_same_updates():
    assert commands("smoke") == ("vtkernels train smoke", "torchrun --nproc-per-node 8 -m vtkernels train smoke")
    one, eight = commands("deit")
    assert one == "vtkernels train deit --data.path imagenet --train.accumulate 8"
    assert eight == "torchrun --nproc-per-node 8 -m vtkernels train deit --data.path imagenet"
    assert commands("noisy_student")[1].endswith(
        "vtkernels noisy-student noisy_student --data.path imagenet --unlabelled.name folder --unlabelled.path unlabelled"
    )
    assert commands("noisy_student_svhn")[0] == "vtkernels noisy-student noisy_student_svhn --data.path svhn --unlabelled.path svhn"
    assert commands("kd_cifar")[0] == "vtkernels train kd_cifar --data.path cifar10 --task.teacher FOLDER"
    # its rate follows the number of processes
    assert commands("cvt")[0].endswith("--train.accumulate 8 --optim.lr 0.002")
    assert get_recipe("cvt").resolved(8).optim.lr == 2e-3


def test_a_plan_counts_the_steps_of_an_attack():
    plain, attacked = (dict(line.split(maxsplit=1) for line in plan(replace(SMOKE, task=task)).splitlines()) for task in (SMOKE.task, Adversarial(steps=7)))
    assert plain["steps"].endswith("a forward and backward pass each")
    assert attacked["steps"].endswith("8 forward and backward passes each")
    work = [float(lines["compute"].split()[0]) for lines in (plain, attacked)]
    assert work[1] == pytest.approx(8 * work[0], rel=0.01)


def test_smoothing_of_adversarial_targets_is_that_of_its_task():
    recipe = replace(mixed(), task=Adversarial(inner=Classification(loss=CrossEntropy(smoothing=0.2)), steps=1))
    assert next(iter(build(recipe).train_loader))[1].min() == pytest.approx(0.02)
