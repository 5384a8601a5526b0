"""Adversarial examples: images moved within a small ball so that the loss rises. Pixels lie in [0, 1], normalisation is the model's first step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels._core.check import fail

# losses of the single samples [B]
SampleLoss = Callable[[Tensor, Tensor], Tensor]
# one for the batch, or one for each image
Generators = torch.Generator | Sequence[torch.Generator] | None


def fgsm(model: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, epsilon: float, *, random_start: bool = False, **options) -> Tensor:
    """One step of length epsilon along the gradient's sign; 1.25 * epsilon from a random start, as in fast adversarial training."""
    length = epsilon * (1.25 if random_start else 1.0)
    return pgd(model, images, targets, epsilon, step=length, steps=1, random_start=random_start, **options)


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    epsilon: float,
    *,
    step: float | None = None,
    steps: int = 7,
    norm: str = "linf",
    random_start: bool = True,
    restarts: int = 1,
    use_best: bool = False,
    targeted: bool = False,
    loss: SampleLoss | None = None,
    generator: Generators = None,
) -> Tensor:
    """Projected gradient ascent of the loss, within epsilon of the images and within [0, 1].

    The model's mode is left as it is, and no gradient reaches its parameters.

    Args:
        model: logits of images.
        images: floating [B, ...] in [0, 1].
        targets: classes [B], or what `loss` takes.
        epsilon: radius of the ball: 8/255 on CIFAR-10, 4/255 on ImageNet, for "linf". It holds up to the rounding of the images' dtype: of
            half precision, which rounds by a good part of such a step, rather give float32 images, and let autocast round inside the model.
        step: length of a step; 2.5 * epsilon / steps if None.
        norm: "linf" or "l2", of each image.
        random_start: uniform within the ball ("linf") or on its sphere ("l2").
        restarts: each image keeps the start whose loss became the highest. More than one needs a random start.
        use_best: each image keeps its worst iterate instead of the last, for one forward pass more.
        targeted: lowers the loss of the given targets instead.
        loss: `loss(logits, targets)` of each sample [B]; cross-entropy if None.
        generator: what random starts are drawn from; or one for each image, whose starts then depend on no other image of the batch.
    """
    check.check_tensor("pgd", "images", images)
    check.check_floating("pgd", "images", images)
    if norm not in ("linf", "l2"):
        fail("pgd", "norm", "be 'linf' or 'l2'", repr(norm))
    if not epsilon >= 0 or steps < 0 or restarts < 1 or (restarts > 1 and not random_start):
        fail("pgd", "epsilon, steps and restarts", "not be negative, and restarts be 1 without a random start", (epsilon, steps, restarts))
    if images.numel() and not (images.amin() >= 0 and images.amax() <= 1):
        fail("pgd", "images", "lie in [0, 1]", f"{images.amin():.3g}..{images.amax():.3g}", "give pixels, and let the model normalise")
    if isinstance(generator, Sequence) and len(generator) != len(images):
        fail("pgd", "generator", f"be one, or one for each of {len(images)} images", len(generator))
    length = step if step is not None else 2.5 * epsilon / max(steps, 1)
    search = _Search(model, images.detach(), targets, epsilon, norm, -1.0 if targeted else 1.0, loss or _cross_entropy)
    best, height = search.origin, None
    for _ in range(restarts):
        found, found_height = search.climb(length, steps, random_start, use_best, need_height=restarts > 1, generator=generator)
        if height is None:
            best, height = found, found_height
        else:
            best, height = search.higher(best, height, found, found_height)
    return best


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


class _Search:
    """Ascent of one batch; heights are losses of the samples, negative where they shall fall."""

    def __init__(self, model: Callable, origin: Tensor, targets: Tensor, epsilon: float, norm: str, sign: float, loss: SampleLoss):
        self.model, self.origin, self.targets, self.epsilon = model, origin, targets, epsilon
        self.norm, self.sign, self.loss = norm, sign, loss

    def climb(self, length: float, steps: int, random_start: bool, use_best: bool, need_height: bool, generator: Generators):
        at = self.start(generator) if random_start else self.origin
        best = height = None
        for _ in range(steps):
            gradient, here = self.gradient(at)
            if use_best:
                best, height = (at, here) if height is None else self.higher(best, height, at, here)
            at = self.projected(at + length * self.direction(gradient))
        if use_best or need_height:
            with torch.no_grad():
                here = self.sign * self.loss(self.model(at), self.targets)
            return (at, here) if height is None else self.higher(best, height, at, here)
        return at, None

    def gradient(self, at: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            height = self.sign * self.loss(self.model(at), self.targets)
            (gradient,) = torch.autograd.grad(height.mean(), at)
        return gradient, height.detach()

    def direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        return gradient / (_lengths(gradient) + 1e-10)

    def start(self, generator: Generators) -> Tensor:
        if self.norm == "linf":
            return self.projected(self.origin + self.epsilon * (2 * self.drawn(torch.rand, generator) - 1))
        noise = self.drawn(torch.randn, generator)
        return self.projected(self.origin + self.epsilon * noise / (_lengths(noise) + 1e-10))

    def drawn(self, draw: Callable[..., Tensor], generator: Generators) -> Tensor:
        """Random numbers in the shape of the images."""
        if not isinstance(generator, Sequence):
            return draw(self.origin.shape, generator=generator, device=self.origin.device, dtype=self.origin.dtype)
        noise = torch.empty_like(self.origin)
        for image, own in zip(noise, generator, strict=True):
            image.copy_(draw(image.shape, generator=own, device=own.device, dtype=image.dtype))
        return noise

    def projected(self, at: Tensor) -> Tensor:
        """The nearest point of the ball, then of [0, 1], which keeps it in the ball."""
        move = at - self.origin
        if self.norm == "linf":
            return (self.origin + move.clamp(-self.epsilon, self.epsilon)).clamp(0, 1)
        return (self.origin + move * (self.epsilon / _lengths(move).clamp_min(1e-30)).clamp_max(1.0)).clamp(0, 1)

    def higher(self, first: Tensor, first_height: Tensor, second: Tensor, second_height: Tensor) -> tuple[Tensor, Tensor]:
        better = second_height > first_height
        shape = (-1,) + (1,) * (first.dim() - 1)
        return torch.where(better.reshape(shape), second, first), torch.where(better, second_height, first_height)


def _lengths(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors.flatten(1), dim=1).reshape((-1,) + (1,) * (vectors.dim() - 1))
