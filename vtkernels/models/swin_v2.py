"""SwinV2: Swin with cosine attention, position biases from a small MLP, and norms at the end of the branches.

Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", 2021.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.models._registry import Info, Variant, register
from vtkernels.models.swin import BASE, LARGE, NANO, SMALL, TINY, SwinBlock, SwinConfig, SwinTransformer, merge_neighbours
from vtkernels.nn import WindowAttentionV2


@dataclass(frozen=True, kw_only=True)
class SwinV2Config(SwinConfig):
    """A SwinV2.

    Attributes:
        pretrained_windows: edge of the windows each stage was first trained with, which scales the position MLP's
            coordinates; empty where it is the present one.
    """

    img_size: int | tuple[int, int] = 256
    window: int | tuple[int, int] = 8
    pretrained_windows: tuple[int, ...] = ()


class PostNormMerging(nn.Module):
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]; unlike Swin's, normalised at the end."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(merge_neighbours(x)))


class PostNormBlock(SwinBlock):
    """x + norm(attention(x)), then x + norm(mlp(x)): no branch can outgrow what it is added to."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.norm1(self.attn(x, self.shift)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class SwinTransformerV2(SwinTransformer):
    config: SwinV2Config
    block = PostNormBlock
    merging = PostNormMerging

    def __init__(self, config: SwinV2Config):
        if config.pretrained_windows and len(config.pretrained_windows) != len(config.depths):
            check.fail("SwinV2Config", "pretrained_windows", f"be empty or give {len(config.depths)} stages", config.pretrained_windows)
        super().__init__(config)

    def new_attention(self, stage: int, width: int, window: tuple[int, int]) -> nn.Module:
        config = self.config
        return WindowAttentionV2(
            width,
            window,
            config.heads[stage],
            config.qkv_bias,
            attn_drop=config.attention_dropout,
            proj_drop=config.dropout,
            pretrained_window_size=config.pretrained_windows[stage] if config.pretrained_windows else 0,
            shift_first=config.shift_first,
        )

    def initialise(self) -> None:
        super().initialise()
        # every block starts as the identity
        for stage in self.layers:
            for block in stage.blocks:
                for norm in (block.norm1, block.norm2):
                    nn.init.zeros_(norm.weight)

    def no_weight_decay(self) -> set[str]:
        position = {name for name, _ in self.named_parameters() if ".cpb_mlp." in name or name.endswith(".logit_scale")}
        return super().no_weight_decay() | position

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        converted = super().convert_state(state)
        # torchvision keeps one bias for q, k and v, whose middle third it never uses
        for name in [name for name in converted if name.endswith(".attn.qkv.bias")]:
            q_bias, _, v_bias = converted.pop(name).chunk(3)
            prefix = name.removesuffix("qkv.bias")
            converted |= {f"{prefix}q_bias": q_bias, f"{prefix}v_bias": v_bias}
        return converted


def _variant(parameters: int, gmacs: float | None, top1: float | None, size: dict, source: str = "arXiv:2111.09883", classes: int = 1000, **fields) -> Variant:
    return Variant(SwinV2Config(**size, **fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


# pre-trained on 192 pixels with windows of 12, then carried over to larger ones
WINDOW_16 = {"window": 16, "pretrained_windows": (12, 12, 12, 6)}
WINDOW_24 = {"window": 24, "img_size": 384, "pretrained_windows": (12, 12, 12, 6)}

register(
    SwinTransformerV2,
    {
        "swinv2_nano_window4_32": _variant(148_214, None, None, NANO, "for tests and demonstrations", 10, img_size=32, window=4),
        "swinv2_tiny_window8_256": _variant(28_347_154, 5.9, 81.8, TINY),
        "swinv2_tiny_window16_256": _variant(28_347_154, 6.6, 82.8, TINY, window=16),
        "swinv2_small_window8_256": _variant(49_728_418, 11.5, 83.7, SMALL),
        "swinv2_small_window16_256": _variant(49_728_418, 12.6, 84.1, SMALL, window=16),
        "swinv2_base_window8_256": _variant(87_918_816, 20.3, 84.2, BASE),
        "swinv2_base_window16_256": _variant(87_918_816, 21.8, 84.6, BASE, window=16),
        "swinv2_base_window12_192": _variant(109_280_841, None, None, BASE, classes=21_841, img_size=192, window=12),
        "swinv2_base_window12to16_192to256": _variant(87_918_816, 21.8, 86.2, BASE, **WINDOW_16),
        "swinv2_base_window12to24_192to384": _variant(87_918_816, 54.7, 87.1, BASE, **WINDOW_24),
        "swinv2_large_window12_192": _variant(228_772_549, None, None, LARGE, classes=21_841, img_size=192, window=12),
        "swinv2_large_window12to16_192to256": _variant(196_739_932, 47.5, 86.9, LARGE, **WINDOW_16),
        "swinv2_large_window12to24_192to384": _variant(196_739_932, 115.4, 87.6, LARGE, **WINDOW_24),
    },
)
