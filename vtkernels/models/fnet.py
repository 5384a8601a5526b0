"""FNet on images: the frame of a ViT, with a Fourier transform in the place of attention.

Lee-Thorp et al., "FNet: Mixing Tokens with Fourier Transforms", 2021, mixes words and normalises after each branch. Here the
branches are normalised before, as in a ViT, and the transform is orthonormal: an unscaled one would grow the tokens by hundreds.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import PatchEmbed, carry_positions, prepend_tokens, truncated_normal_linears
from vtkernels.models._isotropic import Isotropic, IsotropicConfig
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class FNetConfig(IsotropicConfig):
    """An FNet for images.

    Attributes:
        mlp_ratio: hidden channels of the MLP over `width`.
        class_token: whether a learned token is put before the patches and read by the head, which else averages the patches.
        positions: whether learned position embeddings are added.
        planar: transform over rows, columns and channels of the grid of patches, instead of over its tokens in a row and channels.
    """

    width: int = 384
    depth: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    positions: bool = True
    planar: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dropout: float = 0.0


class FourierMix(nn.Module):
    """The real part of the orthonormal Fourier transform over tokens and channels of [B, N, C]; with a grid, over its two axes and channels."""

    def __init__(self, grid: tuple[int, int] | None = None):
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        # MKL refuses to transform nothing
        if x.shape[0] == 0:
            return x
        # there is no transform of half precision but on some GPUs, for powers of two
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.grid is None:
            mixed = torch.fft.fftn(wide, dim=(1, 2), norm="ortho")
        else:
            mixed = torch.fft.fftn(wide.unflatten(1, self.grid), dim=(1, 2, 3), norm="ortho").flatten(1, 2)
        return mixed.real.to(x.dtype)

    def extra_repr(self) -> str:
        return f"grid={self.grid}"


class FNet(Isotropic):
    config: FNetConfig
    embedding = ("patch_embed", "pos_embed", "cls_token")

    def __init__(self, config: FNetConfig):
        super().__init__(config)
        if config.planar and config.class_token:
            check.fail("FNetConfig", "class_token", "be False with planar=True", True, "a class token has no place in the grid of patches")
        width = config.width
        self.prefix_tokens = int(config.class_token)
        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.prefix_tokens + self.num_patches, width)) if config.positions else None
        self.pos_drop = nn.Dropout(config.dropout)
        grid = self.grid_size if config.planar else None
        self.blocks = self.new_blocks(lambda: FourierMix(grid), act=config.activation)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = self.new_classifier(width)
        self.initialise()

    def initialise(self) -> None:
        truncated_normal_linears(self)
        for table in (self.pos_embed, self.cls_token):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = prepend_tokens(x, self.cls_token)
        return self.pos_drop(x if self.pos_embed is None else x + self.pos_embed)

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features[:, 0] if self.config.class_token else features.mean(1))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        return carry_positions(state, "pos_embed", self.grid_size, self.prefix_tokens)


def _variant(parameters: int, classes: int = 1000, **fields: object) -> Variant:
    return Variant(FNetConfig(**fields), Info(parameters=parameters, classes=classes, source="arXiv:2105.03824"))


TINY = {"width": 192}
SMALL = {"width": 384}
BASE = {"width": 768}
AVERAGE = {"class_token": False}
NATIVE = {"img_size": 32, "patch_size": 4}

register(
    FNet,
    {
        "fnet_nano_patch4_32": _variant(74_826, classes=10, width=64, depth=2, **NATIVE),
        "fnet_nano_patch4_planar_32": _variant(74_698, classes=10, width=64, depth=2, planar=True, **AVERAGE, **NATIVE),
        "fnet_tiny_patch4_32": _variant(3_584_074, classes=10, **TINY, **NATIVE),
        "fnet_tiny_patch4_gap_32": _variant(3_583_690, classes=10, **TINY, **AVERAGE, **NATIVE),
        "fnet_small_patch4_32": _variant(14_246_026, classes=10, **SMALL, **NATIVE),
        "fnet_small_patch4_gap_32": _variant(14_245_258, classes=10, **SMALL, **AVERAGE, **NATIVE),
        "fnet_tiny_patch16_224": _variant(3_938_728, **TINY),
        "fnet_tiny_patch16_gap_224": _variant(3_938_344, **TINY, **AVERAGE),
        "fnet_small_patch16_224": _variant(14_954_344, **SMALL),
        "fnet_small_patch16_gap_224": _variant(14_953_576, **SMALL, **AVERAGE),
        "fnet_base_patch16_224": _variant(58_219_240, **BASE),
        "fnet_base_patch16_gap_224": _variant(58_217_704, **BASE, **AVERAGE),
    },
)
