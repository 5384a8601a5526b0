"""Centres of classes, and how they follow the features: as a buffer or as a parameter, over all processes."""

import torch
from torch import Tensor, distributed, nn

from vtkernels._core import check
from vtkernels.losses._input import check_classes, computed, existing, number, one_of

UPDATES = ("paper", "counted", "gradient")


class ClassCenters(nn.Module):
    """`centers`, [K, D] of normal numbers at first, and the step they take in each training call of a loss.

    update="paper" keeps them in a buffer and moves them in the call, c_j <- c_j - alpha sum (c_j - x_i) / (1 + n_j) over the samples of
    class j: no optimizer, and a class absent from the batch stays. Where one step takes two passes (SAM), call one of them in eval mode.
    "counted" and "gradient" make them a parameter: the former's gradient is the paper's sum, so that SGD with rate alpha takes the
    paper's step; the latter's is that of the loss. Neither contains `weight`, which is the features' alone, and either passes through a
    GradScaler. Keep the parameter out of weight decay, and give it a learning rate of its own (0.5 is usual).

    Sums run over the processes of `group` (of all, where torch.distributed is in use), so that every process takes the same step, inside
    DistributedDataParallel or not: all must make the call, with an empty batch if need be. Centres start from `seed` for that reason.
    """

    def __init__(
        self, num_classes: int, dim: int, *, update: str = "paper", alpha: float = 0.5, weight: float = 1.0, deviation: float = 1.0, seed: int = 0, group=None
    ):
        super().__init__()
        name = type(self).__name__
        for argument, value in (("num_classes", num_classes), ("dim", dim)):
            if not isinstance(value, int) or value < 1:
                check.fail(name, argument, "be an int of at least 1", repr(value))
        one_of(name, "update", update, UPDATES, "paper needs no optimizer")
        number(name, "alpha", alpha, 0.0, 1.0, "0.5 is usual, 0 keeps the centres")
        number(name, "weight", weight, hint="the papers have 0.003 to 0.01")
        self.update, self.alpha, self.weight, self.group = update, alpha, weight, group
        centers = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed), device="cpu") * deviation
        if update == "paper":
            self.register_buffer("centers", centers)
        else:
            self.centers = nn.Parameter(centers)

    @torch.no_grad()
    def sums(self, distances: Tensor, target: Tensor) -> Tensor:
        """[K, D]: of each class the sum of its samples' `distances` (c - x, [B, D])."""
        index, counts, _ = existing(type(self).__name__, target, len(self.centers))
        distances = distances.masked_fill(~counts[:, None], 0.0).to(self.centers.dtype)
        return self.over_processes(torch.zeros_like(self.centers).index_add(0, index, distances))

    @torch.no_grad()
    def counted(self, distances: Tensor, target: Tensor) -> Tensor:
        """The paper's step without its alpha: `sums` over 1 + the number of samples of the class."""
        index, counts, _ = existing(type(self).__name__, target, len(self.centers))
        sizes = self.centers.new_zeros(len(self.centers)).index_add(0, index, counts.to(self.centers.dtype))
        return self.sums(distances, target) / (1.0 + self.over_processes(sizes))[:, None]

    def batch(self, target: Tensor) -> Tensor:
        """The number of samples of all processes, 1 at least."""
        return self.over_processes(torch.full((), len(target), device=target.device)).clamp(min=1)

    @torch.no_grad()
    def over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(value, group=self.group)
        return value

    def follow(self, step: Tensor) -> Tensor:
        """Move the buffer against `step`, or return a zero whose gradient for the parameter is `step`."""
        if self.update == "paper":
            with torch.no_grad():
                # features that overflowed cost a step of the optimizer, and must not cost the centres
                self.centers.sub_(self.alpha * step.masked_fill(~step.isfinite(), 0.0))
            return step.new_zeros(())
        pulled = (self.centers * step).sum()
        return pulled - pulled.detach()

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.centers.shape))}, update={self.update!r}, alpha={self.alpha}, weight={self.weight}"


def with_centers(op: str, features: Tensor, target: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checked features and centres in the precision of the loss, safe indices, and which targets name no class."""
    check.check_tensor(op, "features", features, 2, "[batch, channels]")
    check.check_floating(op, "features", features)
    check.check_tensor(op, "centers", centers, 2, "[classes, channels]")
    if centers.shape[1] != features.shape[1]:
        check.fail(op, "features", f"have the {centers.shape[1]} channels of the centres", features.shape[1], "was the loss built for another width?")
    if centers.device != features.device:
        check.fail(op, "centers", f"be on the device of features ({features.device})", centers.device, "try loss.to(features.device)")
    check_classes(op, target, features, of="features")
    x, c = computed(features), computed(centers)
    dtype = torch.promote_types(x.dtype, c.dtype)
    index, _, wrong = existing(op, target, len(centers))
    return x.to(dtype), c.to(dtype), index, wrong
