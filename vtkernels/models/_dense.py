"""What models for segmentation and detection share: the trunk of a classifier, frozen or not, and its maps on one scale."""

from collections.abc import Collection

from torch import Tensor, nn

from vtkernels.layers import LayerNorm2d
from vtkernels.models._base import FeatureMaps, Model


class Dense(nn.Module):
    """A trunk with norms behind its maps; a subclass adds the head that reads `maps`.

    Args:
        backbone: of `create_model(..., features_only=True)`; a classifier loses its head.
        frozen: the trunk is neither trained nor put into training mode: its statistics stay, and nothing in it is dropped.
    """

    def __init__(self, backbone: FeatureMaps | Model, frozen: bool = False):
        super().__init__()
        self.backbone = backbone if isinstance(backbone, FeatureMaps) else FeatureMaps(backbone)
        self.frozen = frozen
        if frozen:
            self.backbone.requires_grad_(False).eval()
        # trunks end in maps of any magnitude, which heads would have to follow
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in self.backbone.channels)

    def use_maps(self, levels: Collection[int]) -> None:
        """Only these are normalised, so that every parameter left has a gradient."""
        self.norms = nn.ModuleList(norm if level in levels else nn.Identity() for level, norm in enumerate(self.norms))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Normalised maps [B, D, H, W] of growing depth."""
        return [norm(found) for norm, found in zip(self.norms, self.backbone(images), strict=True)]

    def train(self, mode: bool = True) -> "Dense":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the trunk's activations in the backward instead of storing them."""
        self.backbone.model.set_grad_checkpointing(enable)

    def layer_groups(self) -> list[list[str]]:
        """Parameter names from the input to the head, for layer-wise learning rates."""
        trunk = [[f"backbone.model.{name}" for name in group] for group in self.backbone.model.layer_groups()]
        return [*trunk, [name for name, _ in self.named_parameters() if not name.startswith("backbone.")]]
