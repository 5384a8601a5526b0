"""Center and island loss: features near the centre of their class, and centres away from each other."""

import math

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.losses._centers import ClassCenters, with_centers
from vtkernels.losses._input import computed, may_look, number, one_of

NORMALIZATIONS = ("paper", "caffe", "kaiyang", "distance")


def center_loss(features: Tensor, target: Tensor, centers: Tensor, *, normalization: str = "paper") -> Tensor:
    """How far features are from the centres of their classes; differentiable in both.

    Args:
        features: [B, D]. target: [B] int64 classes. centers: [K, D].
        normalization: with d_i = x_i - c_{y_i}, paper: sum |d_i|^2 / 2; caffe (the authors' layer): that over B; kaiyang
            (KaiyangZhou/pytorch-center-loss): the mean of |d_i|^2, without the half, and without the (K - 1) 1e-12 its clamps add;
            distance: the mean of |d_i|, not squared.
    """
    name = "center_loss"
    one_of(name, "normalization", normalization, NORMALIZATIONS, "paper sums over the batch, the others average")
    x, c, index, wrong = with_centers(name, features, target, centers)
    d = (x - c[index]).masked_fill(wrong[:, None], math.nan)
    batch = max(len(x), 1)
    if normalization == "distance":
        return torch.linalg.vector_norm(d, dim=1).sum() / batch
    return d.square().sum() * {"paper": 0.5, "caffe": 0.5 / batch, "kaiyang": 1.0 / batch}[normalization]


class CenterLoss(ClassCenters):
    """`weight` times `center_loss` with centres of its own: add it to a loss of the classes, or all features fall into one point.

    Args:
        num_classes, dim: of the centres.
        normalization: as in `center_loss`.
        update, alpha, seed, group: as in `ClassCenters`. KaiyangZhou's is normalization="kaiyang", update="gradient".
        weight: of the loss, which does not act on the centres; the paper has 0.003, and sums over the batch.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        normalization: str = "paper",
        *,
        update: str = "paper",
        alpha: float = 0.5,
        weight: float = 1.0,
        seed: int = 0,
        group=None,
    ):
        super().__init__(num_classes, dim, update=update, alpha=alpha, weight=weight, seed=seed, group=group)
        one_of(type(self).__name__, "normalization", normalization, NORMALIZATIONS, "paper sums over the batch, the others average")
        self.normalization = normalization

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """features [B, D], target [B] int64; in training the centres follow."""
        centers = self.centers.detach()
        loss = self.weight * center_loss(features, target, centers, normalization=self.normalization)
        return loss + self.follow(self.step(features.detach(), target)) if self.training else loss

    @torch.no_grad()
    def step(self, features: Tensor, target: Tensor) -> Tensor:
        """What the centres move against."""
        x, c, index, _ = with_centers(type(self).__name__, features, target, self.centers)
        d = c[index] - x
        if self.update != "gradient":
            return self.counted(d, target)
        if self.normalization == "distance":
            length = torch.linalg.vector_norm(d, dim=1, keepdim=True)
            d = torch.where(length > 0, d / length, 0.0)
        sums = self.sums(d, target)
        if self.normalization == "paper":
            return sums
        return sums * (2.0 if self.normalization == "kaiyang" else 1.0) / self.batch(target)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, normalization={self.normalization!r}"


def island_pairs(centers: Tensor) -> Tensor:
    """The sum of cos(c_j, c_k) + 1 over ordered pairs j != k of centres [K, D]: K (K - 1) for orthogonal ones.

    A centre of length 0 has no direction: it raises on a CPU, and is NaN on a GPU.
    """
    directions, _ = _directions("island_pairs", centers)
    classes = len(directions)
    # all products but those of each with itself, without forming the [K, K] of them
    return directions.sum(0).square().sum() - directions.square().sum() + classes * (classes - 1)


def _island_slope(centers: Tensor) -> Tensor:
    """The gradient of `island_pairs`: each centre moves across its own direction, away from the sum of the others'."""
    directions, lengths = _directions("island_pairs", centers)
    others = directions.sum(0) - directions
    return 2.0 * (others - (others * directions).sum(1, keepdim=True) * directions) / lengths


def _directions(name: str, centers: Tensor) -> tuple[Tensor, Tensor]:
    check.check_tensor(name, "centers", centers, 2, "[classes, channels]")
    check.check_floating(name, "centers", centers)
    c = computed(centers)
    lengths = torch.linalg.vector_norm(c, dim=1, keepdim=True)
    if may_look(centers) and (lengths == 0).any():
        found = (lengths[:, 0] == 0).nonzero()[0, 0].item()
        check.fail(name, f"centers[{found}]", "have a direction", "a vector of zeros", "start from random centres")
    return c / lengths, lengths


def island_loss(features: Tensor, target: Tensor, centers: Tensor, *, pair_weight: float = 10.0, normalization: str = "paper") -> Tensor:
    """`center_loss` + pair_weight times `island_pairs`; differentiable in features and centres."""
    number("island_loss", "pair_weight", pair_weight, hint="the paper has 10")
    return center_loss(features, target, centers, normalization=normalization) + pair_weight * island_pairs(centers)


class IslandLoss(CenterLoss):
    """`weight` times `island_loss` with centres of its own, which also push each other away; absent classes are pushed too.

    With update "paper" and "counted" the step adds pair_weight / (K - 1) times sum_k (dcos_kj / dc_j) to the center loss's, as the
    paper has it; "gradient" is that of the loss. The paper has weight 0.01.
    """

    def __init__(self, num_classes: int, dim: int, normalization: str = "paper", *, pair_weight: float = 10.0, weight: float = 0.01, **centers):
        super().__init__(num_classes, dim, normalization, weight=weight, **centers)
        number(type(self).__name__, "pair_weight", pair_weight, hint="the paper has 10")
        self.pair_weight = pair_weight

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        pairs = self.weight * self.pair_weight * island_pairs(self.centers.detach())
        return pairs + super().forward(features, target)

    @torch.no_grad()
    def step(self, features: Tensor, target: Tensor) -> Tensor:
        # each pair is in the sum twice
        share = 1.0 if self.update == "gradient" else 0.5 / max(len(self.centers) - 1, 1)
        return super().step(features, target) + self.pair_weight * share * _island_slope(self.centers)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pair_weight={self.pair_weight}"
