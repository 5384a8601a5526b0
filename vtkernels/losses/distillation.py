"""Losses with a teacher: soft and hard distillation, DeiT's, and the noisy student's."""

from typing import NamedTuple

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.losses._input import check_probabilities, check_target, class_logits, number, one_of
from vtkernels.losses._module import Loss
from vtkernels.losses.categorical import cross_entropy
from vtkernels.losses.label_smoothing import label_smoothing_cross_entropy

SCALINGS = ("hinton", "deit", "plain")
_WHICH_SCALING = "hinton is the paper's; deit divides by the classes too, as its published code; plain leaves tau^2 out"


def distillation_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 3.0, scaling: str = "hinton") -> Tensor:
    """KL(teacher || student) of softmax(logits / tau), summed over classes. The teacher has no gradient.

    Args:
        student, teacher: [B, K] logits.
        temperature: tau.
        scaling: what the sum over the batch becomes. hinton: tau^2 / B. deit: tau^2 / (B K), K times weaker. plain: 1 / B, so that a higher
            temperature also weakens the gradient.
    """
    name = "distillation_divergence"
    x = class_logits(name, student, "student")
    t = _teacher_of(name, teacher, student)
    number(name, "temperature", temperature, 0.0, low_counts=False, hint="the papers have 1 to 5")
    one_of(name, "scaling", scaling, SCALINGS, _WHICH_SCALING)
    log_q, log_p = (x / temperature).log_softmax(1), (t / temperature).log_softmax(1)
    p = log_p.exp()
    # what the teacher rules out costs nothing, even where the student rules it out too
    total = (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum()
    divisor = max(len(x), 1) * (x.shape[1] if scaling == "deit" else 1)
    return total * ((1.0 if scaling == "plain" else temperature**2) / divisor)


def soft_distillation_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, weight: float = 0.1, temperature: float = 3.0, scaling: str = "hinton"
) -> Tensor:
    """(1 - weight) cross-entropy + weight times `distillation_divergence`; `weight` is the papers' lambda, of classes or probabilities."""
    number("soft_distillation_loss", "weight", weight, 0.0, 1.0, "0.1 is usual, with temperature 3")
    divergence = distillation_divergence(student, teacher, temperature=temperature, scaling=scaling)
    return (1.0 - weight) * cross_entropy(student, target) + weight * divergence


class SoftDistillationLoss(Loss):
    """`soft_distillation_loss` as a module."""

    function = staticmethod(soft_distillation_loss)


def hard_distillation_loss(student: Tensor, teacher: Tensor, target: Tensor, *, weight: float = 0.5) -> Tensor:
    """(1 - weight) cross-entropy with the target + weight cross-entropy with the class the teacher finds best (the first of equals)."""
    name = "hard_distillation_loss"
    number(name, "weight", weight, 0.0, 1.0, "0.5 is usual")
    class_logits(name, student, "student")
    best = _teacher_of(name, teacher, student).argmax(1)
    return (1.0 - weight) * cross_entropy(student, target) + weight * cross_entropy(student, best)


class HardDistillationLoss(Loss):
    """`hard_distillation_loss` as a module."""

    function = staticmethod(hard_distillation_loss)


class Heads(NamedTuple):
    """Logits of the class token and of the distillation token."""

    classes: Tensor
    distillation: Tensor


class DeitDistillationLoss(nn.Module):
    """DeiT's loss: (1 - alpha) base loss of the class head + alpha times what the distillation head owes the teacher.

    The teacher sees the same augmented and mixed images, in evaluation mode; its best class is that of the mixture, and is not smoothed.

    Args:
        base: the loss of (logits, target) for the class head; None is `cross_entropy`, which takes mixed targets too.
        kind: hard (cross-entropy with the teacher's class), soft (`distillation_divergence`), or none.
        alpha: of the teacher.
        temperature, scaling: of soft; the published code has 1 and deit, 1 / K of the paper's divergence.
    """

    def __init__(self, base: nn.Module | None = None, kind: str = "hard", *, alpha: float = 0.5, temperature: float = 1.0, scaling: str = "deit"):
        super().__init__()
        name = type(self).__name__
        one_of(name, "kind", kind, ("hard", "soft", "none"), "the paper found hard the best")
        number(name, "alpha", alpha, 0.0, 1.0, "0.5 is usual")
        number(name, "temperature", temperature, low_counts=False, hint="1 and 3 are usual")
        one_of(name, "scaling", scaling, SCALINGS, _WHICH_SCALING)
        self.base, self.kind, self.alpha, self.temperature, self.scaling = base, kind, alpha, temperature, scaling

    def forward(self, logits: Tensor | tuple[Tensor, Tensor], target: Tensor, teacher: Tensor | None = None) -> Tensor:
        """logits: those of the class head and of the distillation head; one tensor is both. teacher: its logits [B, K]."""
        classes, distilled = Heads(logits, logits) if isinstance(logits, Tensor) else Heads(*logits)
        base = cross_entropy(classes, target) if self.base is None else self.base(classes, target)
        if self.kind == "none":
            return base
        if teacher is None:
            check.fail(type(self).__name__, "teacher", f"be given for kind={self.kind!r}", None, "pass the teacher's logits of the same images", TypeError)
        if self.kind == "soft":
            owed = distillation_divergence(distilled, teacher, temperature=self.temperature, scaling=self.scaling)
        else:
            class_logits(type(self).__name__, distilled, "the distillation head's logits")
            owed = cross_entropy(distilled, _teacher_of(type(self).__name__, teacher, distilled).argmax(1))
        return (1.0 - self.alpha) * base + self.alpha * owed

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, alpha={self.alpha}, temperature={self.temperature}, scaling={self.scaling!r}"


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1 / T), normalised over the last axis: what softmax(logits / T) would have been, from stored probabilities."""
    number("tempered", "temperature", temperature, low_counts=False, hint="1 changes nothing")
    return (probabilities.clamp(min=0).log() / temperature).softmax(-1)


def noisy_student_loss(
    labelled: Tensor, target: Tensor, unlabelled: Tensor, pseudo: Tensor, *, ratio: float | None = None, temperature: float = 1.0, smoothing: float = 0.1
) -> Tensor:
    """The noisy student's loss: of labelled images, with smoothed targets, + ratio times that of pseudo-labelled ones.

    Args:
        labelled, target: [B, K] logits and [B] classes (or probabilities).
        unlabelled: [U, K] logits of augmented images.
        pseudo: what a teacher said of the images without noise: [U, K] probabilities, taken as they are, or [U] int64 classes, smoothed.
        ratio: U / B if not given: then every image of the batch counts alike.
        temperature: of the teacher's probabilities; see `tempered`.
        smoothing: of classes; targets that are probabilities are smoothed too, pseudo-labels that are probabilities are not.
    """
    name = "noisy_student_loss"
    class_logits(name, labelled, "labelled")
    class_logits(name, unlabelled, "unlabelled")
    if unlabelled.shape[1] != labelled.shape[1]:
        check.fail(name, "unlabelled", f"have the {labelled.shape[1]} classes of labelled", unlabelled.shape[1], "split one batch of logits")
    if ratio is None:
        ratio = len(unlabelled) / max(len(labelled), 1)
    number(name, "ratio", ratio, hint="the published values are 1 and 3")
    check_target(name, pseudo, unlabelled)
    known = label_smoothing_cross_entropy(labelled, target, smoothing=smoothing)
    if pseudo.is_floating_point():
        told = cross_entropy(unlabelled, pseudo if temperature == 1.0 else tempered(pseudo, temperature))
    else:
        told = label_smoothing_cross_entropy(unlabelled, pseudo, smoothing=smoothing)
    return known + ratio * told


class NoisyStudentLoss(Loss):
    """`noisy_student_loss` as a module."""

    function = staticmethod(noisy_student_loss)


def _teacher_of(name: str, teacher: Tensor, student: Tensor) -> Tensor:
    check.check_tensor(name, "teacher", teacher, 2, "[batch, classes]")
    check_probabilities(name, "teacher", teacher, "student", student)
    return class_logits(name, teacher.detach(), "teacher")
