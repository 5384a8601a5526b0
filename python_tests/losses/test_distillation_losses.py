"""Losses with a teacher: golden numbers, the scalings of different codes, and which way gradients flow."""

import pytest
import torch
from loss_goldens import T, Y, Z, equal, one_hot, random
from torch.nn import functional as F

from vtkernels import losses


def test_divergence():
    equal(losses.distillation_divergence(Z, T), 0.22387989700829003)
    equal(losses.distillation_divergence(Z, T, scaling="deit"), 0.05596997425207251)
    equal(losses.distillation_divergence(Z, T, scaling="plain"), 0.22387989700829003 / 9)
    theirs = F.kl_div((Z / 2).log_softmax(1), (T / 2).softmax(1), reduction="batchmean")
    equal(losses.distillation_divergence(Z, T, temperature=2.0, scaling="plain"), theirs)


def test_gradient_of_the_divergence():
    x, teacher = Z.clone().requires_grad_(), T.clone().requires_grad_()
    losses.distillation_divergence(x, teacher).backward()
    equal(x.grad, 3 * ((Z / 3).softmax(1) - (T / 3).softmax(1)) / 2)
    assert teacher.grad is None
    # a hot temperature compares logits
    (hot,) = torch.autograd.grad(losses.distillation_divergence(x, T, temperature=1e6), x)
    centred = (Z - Z.mean(1, keepdim=True)) - (T - T.mean(1, keepdim=True))
    torch.testing.assert_close(hot, centred / 8, rtol=1e-5, atol=1e-7)


def test_a_student_like_its_teacher_owes_nothing():
    x = T.clone().requires_grad_()
    loss = losses.distillation_divergence(x, T)
    loss.backward()
    equal(loss, 0.0)
    equal(x.grad, torch.zeros_like(T))


def test_classes_both_rule_out_cost_nothing():
    x, teacher = Z.clone(), T.clone()
    x[:, 0] = teacher[:, 0] = -torch.inf
    equal(losses.distillation_divergence(x, teacher), losses.distillation_divergence(x[:, 1:], teacher[:, 1:]))


def test_soft_and_hard():
    ce, soft = losses.cross_entropy(Z, Y), losses.distillation_divergence(Z, T)
    equal(losses.soft_distillation_loss(Z, T, Y), 0.9 * ce + 0.1 * soft)
    equal(losses.SoftDistillationLoss(weight=0.0)(Z, T, Y), ce)
    best = torch.tensor([1, 3])
    equal(losses.hard_distillation_loss(Z, T, one_hot().flip(0)), (losses.cross_entropy(Z, Y.flip(0)) + losses.cross_entropy(Z, best)) / 2)
    # of equals the first is best
    equal(losses.HardDistillationLoss(weight=1.0)(Z, 0 * T, Y), losses.cross_entropy(Z, torch.tensor([0, 0])))


def test_deit():
    heads = (Z, Z.flip(1))
    base = losses.LabelSmoothingCrossEntropy()
    hard = losses.DeitDistillationLoss(base)
    equal(hard(heads, Y, T), 0.5 * base(Z, Y) + 0.5 * losses.cross_entropy(Z.flip(1), T.argmax(1)))
    soft = losses.DeitDistillationLoss(kind="soft")
    expected = losses.distillation_divergence(Z.flip(1), T, temperature=1.0, scaling="deit")
    equal(soft(heads, Y, T), 0.5 * losses.cross_entropy(Z, Y) + 0.5 * expected)
    equal(losses.DeitDistillationLoss(kind="none")(heads, Y), losses.cross_entropy(Z, Y))
    equal(hard(Z, Y, T), hard((Z, Z), Y, T))
    with pytest.raises(TypeError, match="DeitDistillationLoss: teacher must be given for kind='hard', got None"):
        hard(heads, Y)


def test_each_head_has_its_own_teacher():
    first, second = Z.clone().requires_grad_(), Z.clone().requires_grad_()
    losses.DeitDistillationLoss(alpha=1.0)((first, second), Y, T).backward()
    assert (first.grad == 0).all() and (second.grad != 0).any()


def test_cosub():
    a, b = Z.clone().requires_grad_(), Z.flip(1).clone().requires_grad_()
    loss = losses.cosub_loss(a, b, Y)
    bce = F.binary_cross_entropy_with_logits
    parts = [bce(a, one_hot()), bce(b, one_hot()), bce(a, b.detach().sigmoid()), bce(b, a.detach().sigmoid())]
    equal(loss, sum(parts) / 4)
    loss.backward()
    equal(a.grad, ((Z.sigmoid() - one_hot()) + (Z.sigmoid() - b.detach().sigmoid())) / 4 / 8)
    equal(losses.CosubLoss()(a, b, one_hot()), loss)


def test_noisy_student():
    known = losses.label_smoothing_cross_entropy(Z, Y)
    unlabelled, pseudo = random(6, 4), random(6, 4, seed=1).softmax(1)
    equal(losses.noisy_student_loss(Z, Y, unlabelled, pseudo), known + 3 * losses.cross_entropy(unlabelled, pseudo))
    hard = pseudo.argmax(1)
    equal(losses.NoisyStudentLoss(ratio=1.0)(Z, Y, unlabelled, hard), known + losses.label_smoothing_cross_entropy(unlabelled, hard))
    logits = random(6, 4, seed=2)
    tempered = losses.noisy_student_loss(Z, Y, unlabelled, logits.softmax(1), temperature=2.0)
    equal(tempered, losses.noisy_student_loss(Z, Y, unlabelled, (logits / 2).softmax(1)))
    # probabilities that were stored as 0 stay 0
    equal(losses.tempered(torch.tensor([[0.0, 0.2, 0.8]], dtype=torch.float64), 0.5), [[0, 0.04 / 0.68, 0.64 / 0.68]])
    # nothing but labelled images
    equal(losses.noisy_student_loss(Z, Y, unlabelled[:0], pseudo[:0]), known)
