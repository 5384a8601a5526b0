"""Dense relative localisation as an auxiliary loss: one head for each scale, and a weight that follows the epochs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.ops.drloc_pairs.module import DrlocHead


def drloc_weight(epoch: float, weight: float = 0.5, *, warmup_epochs: float = 20, total_epochs: float = 300) -> float:
    """The published schedule: from 0 at epoch 0 in a line to `weight`, then in a line to 0 at `total_epochs`, where it stays."""
    if not 0 <= warmup_epochs < total_epochs:
        check.fail("drloc_weight", "warmup_epochs", f"lie in [0, total_epochs={total_epochs})", warmup_epochs, "the published values are 20 and 300")
    if epoch < warmup_epochs:
        return weight * max(epoch, 0) / warmup_epochs
    return weight * max(1 - (epoch - warmup_epochs) / (total_epochs - warmup_epochs), 0.0)


class DrlocLoss(nn.Module):
    """The weighted sum of the losses of one `DrlocHead` for each scale: add it to the loss of the classes.

    Its heads have parameters: give them to the optimizer.

    Args:
        dims: channels of the features, or of those of each scale.
        weight: the paper has 0.5 for Swin, 0.1 for CvT and T2T-ViT.
        warmup_epochs, total_epochs: of the schedule, used where `forward` is told the epoch.
        grid: as in `DrlocHead`, or one for each scale in a list.
        head: everything else that a `DrlocHead` takes.
    """

    def __init__(
        self,
        dims: int | Sequence[int],
        weight: float = 0.5,
        *,
        warmup_epochs: float = 20,
        total_epochs: float = 300,
        grid: int | tuple[int, int] | list[int | tuple[int, int]] | None = None,
        **head: Any,
    ):
        super().__init__()
        dims = [dims] if isinstance(dims, int) else list(dims)
        grids = grid if isinstance(grid, list) else [grid] * len(dims)
        if len(grids) != len(dims):
            check.fail("DrlocLoss", "grid", f"have one entry for each of the {len(dims)} scales", len(grids), "or be the same for all")
        self.weight, self.warmup_epochs, self.total_epochs = weight, warmup_epochs, total_epochs
        # told at once, not in the first epoch
        drloc_weight(0, weight, warmup_epochs=warmup_epochs, total_epochs=total_epochs)
        self.heads = nn.ModuleList([DrlocHead(dim, grid=size, **head) for dim, size in zip(dims, grids, strict=True)])

    def weight_at(self, epoch: float | None) -> float:
        """Of every scale in this epoch; without one, the whole."""
        if epoch is None:
            return self.weight
        return drloc_weight(epoch, self.weight, warmup_epochs=self.warmup_epochs, total_epochs=self.total_epochs)

    def forward(self, features: Tensor | Sequence[Tensor], epoch: float | None = None, positions: Sequence[Tensor | None] | None = None) -> Tensor:
        """A float32 scalar. `features`: a map, or one for each scale; `positions`: of each scale, instead of a draw."""
        maps = [features] if isinstance(features, Tensor) else list(features)
        positions = [None] * len(maps) if positions is None else list(positions)
        if len(maps) != len(self.heads) or len(positions) != len(maps):
            got = f"{len(maps)} maps and {len(positions)} of positions"
            check.fail("DrlocLoss", "features", f"be {len(self.heads)} maps, one for each scale", got, "a single tensor is one scale")
        loss = sum(head(x, given) for head, x, given in zip(self.heads, maps, positions, strict=True))
        return loss * self.weight_at(epoch)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, warmup_epochs={self.warmup_epochs}, total_epochs={self.total_epochs}"
