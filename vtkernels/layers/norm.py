"""Normalisations beyond those of torch."""

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, H, W] maps."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    """Group normalisation: each image's channels in `groups` groups, each normalised over its channels and pixels together.

    torch's layer with the channels first, as all norms have them. `groups=1` normalises over the whole map of an image, which is not
    what `LayerNorm2d` does: that treats each pixel alone.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5):
        if channels % groups:
            check.fail("GroupNorm", "channels", f"be a multiple of groups={groups}", channels, "choose fewer groups")
        super().__init__(groups, channels, eps)
