"""CaiT: a deep trunk of talking heads with LayerScale on the patches alone, then class attention, which the class token enters.

Touvron et al., "Going deeper with Image Transformers", 2021.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import PatchEmbed, ScaledBlock, carry_positions, truncated_normal_linears
from vtkernels.models._isotropic import Isotropic, IsotropicConfig
from vtkernels.models._registry import Info, Variant, register
from vtkernels.ops.class_attention.module import ClassAttention
from vtkernels.ops.talking_heads_attention.module import TalkingHeadsAttention


@dataclass(frozen=True, kw_only=True)
class CaitConfig(IsotropicConfig):
    """A CaiT. `drop_path` is the same in all blocks of the trunk, and none in those of class attention.

    Attributes:
        width, depth, heads: channels of a token, blocks of the trunk, attention heads of both parts.
        class_depth: blocks of class attention.
        mlp_ratio: hidden channels of the MLP over `width`.
        layer_scale: initial factor of every residual branch; the deeper, the smaller.
        dropout, attention_dropout: in the trunk; there is none in class attention.
    """

    width: int = 192
    depth: int = 24
    heads: int = 4
    class_depth: int = 2
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float = 1e-5
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0


class ClassBlock(ScaledBlock):
    """(class token, patches) -> class token: the patches are read and never changed."""

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        token = token + self.drop_path(self.gamma_1 * self.read(token, patches))
        return token + self.drop_path(self.gamma_2 * self.mlp(self.norm2(token)))

    def read(self, token: Tensor, patches: Tensor) -> Tensor:
        return self.attn(self.norm1(torch.cat((token, patches), 1)))


class Cait(Isotropic):
    prefix_tokens = 1
    embedding = ("patch_embed", "pos_embed", "cls_token")

    def __init__(self, config: CaitConfig):
        super().__init__(config)
        self.check_config()
        width = config.width
        self.patch_embed = self.new_patch_embed()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_patches, width))
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(self.new_block(index) for index in range(config.depth))
        self.blocks_token_only = nn.ModuleList(self.new_class_block(index) for index in range(config.class_depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = self.new_classifier(width)
        self.initialise()

    def check_config(self) -> None:
        config = self.config
        if config.class_depth < 1:
            check.fail(type(config).__name__, "class_depth", "be at least 1", config.class_depth, "the class token is read after class attention")

    # what related families replace

    def new_patch_embed(self) -> nn.Module:
        return PatchEmbed(self.config.patch_size, self.config.in_channels, self.config.width)

    def new_block(self, index: int) -> nn.Module:
        config = self.config
        attention = TalkingHeadsAttention(config.width, config.heads, config.qkv_bias, attn_drop=config.attention_dropout, proj_drop=config.dropout)
        return ScaledBlock(config.width, attention, self.hidden, config.layer_scale, eps=config.norm_eps, drop=config.dropout, drop_path=config.drop_path)

    def new_class_block(self, index: int) -> nn.Module:
        config = self.config
        return ClassBlock(config.width, ClassAttention(config.width, config.heads, config.qkv_bias), self.hidden, config.layer_scale, eps=config.norm_eps)

    @property
    def hidden(self) -> int:
        return int(self.config.width * self.config.mlp_ratio)

    def initialise(self) -> None:
        truncated_normal_linears(self)
        for table in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(table, std=0.02)

    def _embed(self, x: Tensor) -> Tensor:
        return self.pos_drop(self.patch_embed(x) + self.pos_embed)

    def _features(self, x: Tensor) -> Tensor:
        patches = self._embed(x)
        for block in self.blocks:
            patches = self.run(block, patches)
        token = self.cls_token.expand(x.shape[0], -1, -1)
        for block in self.blocks_token_only:
            token = self.run(block, token, patches)
        return self.norm(torch.cat((token, patches), 1))

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features[:, 0])

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.cls_token = None
        self.blocks_token_only = nn.ModuleList()

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        *trunk, head = super().group_prefixes()
        return [*trunk, *((f"blocks_token_only.{index}",) for index in range(self.config.class_depth)), head]

    def sees_class_token(self, layer: str) -> bool:
        return layer.startswith("blocks_token_only.")

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        return carry_positions(state, "pos_embed", self.grid_size)


def _variant(size: dict[str, object], parameters: int, gmacs: float | None = None, top1: float | None = None, **fields: object) -> Variant:
    source, classes = fields.pop("source", "arXiv:2103.17239"), fields.pop("classes", 1000)
    return Variant(CaitConfig(**{**size, **fields}), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


NANO = {"width": 64, "heads": 2, "depth": 2, "layer_scale": 0.1, "img_size": 32, "patch_size": 4}
XXS24 = {"width": 192, "heads": 4, "depth": 24, "drop_path": 0.05}
XXS36 = {"width": 192, "heads": 4, "depth": 36, "drop_path": 0.1}
XS24 = {"width": 288, "heads": 6, "depth": 24, "drop_path": 0.05}
XS36 = {"width": 288, "heads": 6, "depth": 36, "drop_path": 0.1, "layer_scale": 1e-6}
S24 = {"width": 384, "heads": 8, "depth": 24, "drop_path": 0.1}
S36 = {"width": 384, "heads": 8, "depth": 36, "drop_path": 0.2, "layer_scale": 1e-6}
S48 = {"width": 384, "heads": 8, "depth": 48, "drop_path": 0.3, "layer_scale": 1e-6}
M24 = {"width": 768, "heads": 16, "depth": 24, "drop_path": 0.2}
M36 = {"width": 768, "heads": 16, "depth": 36, "drop_path": 0.3, "layer_scale": 1e-6}
M48 = {"width": 768, "heads": 16, "depth": 48, "drop_path": 0.4, "layer_scale": 1e-6}

# accuracies with distillation where such weights are published, else without
register(
    Cait,
    {
        "cait_nano_patch4_32": _variant(NANO, 272_896, source="for tests and demonstrations"),
        "cait_xxs24_224": _variant(XXS24, 11_956_264, 2.53, 78.400),
        "cait_xxs24_384": _variant(XXS24, 12_029_224, 9.63, 80.954, img_size=384),
        "cait_xxs36_224": _variant(XXS36, 17_299_720, 3.77, 79.750),
        "cait_xxs36_384": _variant(XXS36, 17_372_680, 14.35, 82.204, img_size=384),
        "cait_xs24_224": _variant(XS24, 26_560_648, None, 81.8),
        "cait_xs24_384": _variant(XS24, 26_670_088, 19.28, 84.1, img_size=384),
        "cait_xs36_224": _variant(XS36, 38_557_432, 8.1, 82.6),
        "cait_xs36_384": _variant(XS36, 38_666_872, img_size=384),
        "cait_s24_224": _variant(S24, 46_916_200, 9.35, 83.5),
        "cait_s24_384": _variant(S24, 47_062_120, 32.17, 85.1, img_size=384),
        "cait_s36_224": _variant(S36, 68_220_712, None, 83.3),
        "cait_s36_384": _variant(S36, 68_366_632, 47.99, 85.4, img_size=384),
        "cait_s48_224": _variant(S48, 89_525_224, 18.6, 83.5),
        "cait_s48_384": _variant(S48, 89_671_144, img_size=384),
        "cait_m24_224": _variant(M24, 185_850_088, 36.0, 83.4),
        "cait_m24_384": _variant(M24, 186_141_928, img_size=384),
        "cait_m36_224": _variant(M36, 270_929_512, None, 83.8),
        "cait_m36_384": _variant(M36, 271_221_352, 173.11, 86.1, img_size=384),
        "cait_m48_224": _variant(M48, 356_008_936),
        "cait_m48_384": _variant(M48, 356_300_776, img_size=384),
        "cait_m48_448": _variant(M48, 356_460_520, 329.41, 86.5, img_size=448),
        "cait_xxs24_patch4_32": _variant(XXS24, 11_601_610, 0.731, classes=10, img_size=32, patch_size=4),
    },
)
