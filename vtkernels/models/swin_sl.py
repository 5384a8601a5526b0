"""Swin for small data sets: shifted patch tokenization in place of patches and mergings, locality self-attention in the windows.

Lee et al., "Vision Transformer for Small-Size Datasets", 2021.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import ShiftedPatches
from vtkernels.models._registry import Info, Variant, register
from vtkernels.models.swin import AT_32, AT_64, NANO, SMALL_DATA, SwinConfig, SwinTransformer
from vtkernels.nn import WindowAttention
from vtkernels.ops.window_attention.module import NEVER


class LocalityAttention(WindowAttention):
    """Window attention in which no token sees itself, and every head learns the `scale` of its scores."""

    def __init__(self, dim: int, window_size: tuple[int, int], num_heads: int, *args: Any, **options: Any):
        super().__init__(dim, window_size, num_heads, *args, **options)
        if max(window_size) < 2:
            check.fail("LocalityAttention", "window_size", "hold two tokens or more", window_size, "try a larger img_size, or fewer stages")
        self.scale = nn.Parameter(torch.full((num_heads,), self.scale))

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        # the op's scale is one number: each head's goes into the rows of the projection that make its queries
        factor = F.pad(self.scale.repeat_interleave(self.dim // self.num_heads), (0, 2 * self.dim), value=1.0)
        bias = None if self.qkv.bias is None else self.qkv.bias * factor
        qkv = F.linear(x, self.qkv.weight * factor[:, None], bias)
        # the table's middle row is the offset of a token to itself
        table, middle = self.relative_position_bias_table, self.relative_position_bias_table.shape[0] // 2
        table = torch.cat((table[:middle], torch.full_like(table[:1], NEVER), table[middle + 1 :]))
        return qkv, table, {"scale": 1.0, "qkv_bias": bias}


class ShiftedMerging(ShiftedPatches):
    """[B, H, W, C] -> [B, H / 2, W / 2, 2 C]."""

    def __init__(self, dim: int, eps: float):
        super().__init__(2, dim, 2 * dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class SLSwin(SwinTransformer):
    attention = LocalityAttention
    merging = ShiftedMerging

    def __init__(self, config: SwinConfig):
        multiple = config.patch_size << len(config.depths) - 1
        if any(edge % multiple for edge in config.size):
            check.fail("SLSwin", "img_size", f"be multiples of {multiple}", config.size, "its patches and mergings do not pad")
        super().__init__(config)

    def new_patches(self) -> nn.Module:
        config = self.config
        return ShiftedPatches(config.patch_size, config.in_channels, config.width, config.norm_eps)

    def check_images(self, x: Tensor) -> None:
        super().check_images(x)
        multiple = self.config.patch_size << len(self.config.depths) - 1
        if x.shape[2] % multiple or x.shape[3] % multiple:
            check.fail("SLSwin", "images", f"have edges that are multiples of {multiple}", list(x.shape), "pad or resize them")


def _variant(parameters: int, gmacs: float | None = None, source: str = "arXiv:2112.13492", classes: int = 1000, **fields) -> Variant:
    return Variant(SwinConfig(**fields), Info(parameters=parameters, gmacs=gmacs, source=source, classes=classes))


register(
    SLSwin,
    {
        "swin_sl_nano_patch4_window4_32": _variant(179_298, **AT_32, **NANO | {"source": "for tests and demonstrations", "absolute_positions": True}),
        "swin_sl_patch2_window4_32": _variant(8_562_166, 0.285, patch_size=2, **AT_32, **SMALL_DATA),
        "swin_sl_patch4_window4_64": _variant(8_652_956, None, **AT_64, **SMALL_DATA),
    },
)
