"""AugMix's loss as modules: by its own names, and by timm's."""

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.ops.jsd import augmix_loss


class AugMixLoss(nn.Module):
    """Cross-entropy of the clean view plus `weight` times the Jensen-Shannon consistency of all views; see `vtkernels.augmix_loss`."""

    def __init__(self, num_views: int = 3, weight: float = 12.0, label_smoothing: float = 0.0, *, backend: str = "auto"):
        super().__init__()
        self.num_views, self.weight, self.label_smoothing, self.backend = num_views, weight, label_smoothing, backend

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits [V * B, K], the clean view first; target [B] classes or [B, K] probabilities."""
        return augmix_loss(logits, target, num_views=self.num_views, weight=self.weight, label_smoothing=self.label_smoothing, backend=self.backend)

    def extra_repr(self) -> str:
        return f"num_views={self.num_views}, weight={self.weight}, label_smoothing={self.label_smoothing}"


class JsdCrossEntropy(nn.Module):
    """The class of that name in timm: its arguments, its values. As there, `target` may go on beyond the clean split."""

    def __init__(self, num_splits: int = 3, alpha: float = 12, smoothing: float | None = 0.1, *, backend: str = "auto"):
        super().__init__()
        self.num_splits, self.alpha, self.smoothing, self.backend = num_splits, alpha, smoothing, backend

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """output [num_splits * B, K], the clean split first; target [B] classes, or more of which the first B count."""
        check.check_tensor("JsdCrossEntropy", "output", output, 2, "[splits * batch, classes]")
        clean = target[: output.shape[0] // self.num_splits]
        return augmix_loss(output, clean, num_views=self.num_splits, weight=self.alpha, label_smoothing=self.smoothing or 0.0, backend=self.backend)

    def extra_repr(self) -> str:
        return f"num_splits={self.num_splits}, alpha={self.alpha}, smoothing={self.smoothing}"
