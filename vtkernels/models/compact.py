"""Compact Transformers, for small images from scratch: ViT-Lite, CVT (its class token replaced by sequence pooling) and CCT (its patches by convolutions).

Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers", 2021.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Attention, Block, PatchEmbed, carry_positions, prepend_tokens, sin_cos_positions, truncated_normal_linears
from vtkernels.models._isotropic import Isotropic, IsotropicConfig
from vtkernels.models._registry import Info, Variant, register

POOLINGS = ("sequence", "token")
POSITIONS = ("learned", "sine")

OFFICIAL_NAMES = (
    ("tokenizer.conv_layers.", "patch_embed.convs."),
    ("classifier.class_emb", "cls_token"),
    ("classifier.positional_emb", "pos_embed"),
    ("classifier.fc.", "head."),
    ("classifier.", ""),
    # the order matters: their norm1 is our norm2
    (".norm1.", ".norm2."),
    (".pre_norm.", ".norm1."),
    (".self_attn.", ".attn."),
    (".linear1.", ".mlp.fc1."),
    (".linear2.", ".mlp.fc2."),
)


@dataclass(frozen=True, kw_only=True)
class CompactConfig(IsotropicConfig):
    """A Compact Transformer.

    Attributes:
        conv_layers: convolutions that make the tokens, each with ReLU and a pooling of stride 2; without any, patches of `patch_size`.
        kernel_size, stride: of these convolutions.
        heads, mlp_ratio: attention heads; hidden channels of the MLP over `width`.
        pooling: "sequence", a learned weighted mean of the tokens, or "token", a class token.
        positions: "learned", or "sine", which are fixed.
    """

    img_size: int | tuple[int, int] = 32
    patch_size: int = 4
    width: int = 256
    depth: int = 7
    drop_path: float = 0.1
    conv_layers: int = 0
    kernel_size: int = 3
    stride: int = 1
    heads: int = 4
    mlp_ratio: float = 2.0
    pooling: str = "sequence"
    positions: str = "learned"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.1


class ConvTokenizer(nn.Module):
    """[B, C, H, W] -> [B, N, D] by convolutions, ReLU and overlapping max-pooling."""

    def __init__(self, layers: int, kernel_size: int, stride: int, in_channels: int, dim: int, hidden: int = 64):
        super().__init__()
        widths = [in_channels, *[hidden] * (layers - 1), dim]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size, stride, padding=kernel_size // 2, bias=False) for before, after in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), kernel_size=3, stride=2, padding=1)
        return x.flatten(2).transpose(1, 2)


class CompactBlock(Block):
    """A block whose second norm is not in the branch: what it gives is also what the MLP's output is added to."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(x + self.drop_path(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(x))


class CompactTransformer(Isotropic):
    embedding = ("patch_embed", "pos_embed", "cls_token")

    def __init__(self, config: CompactConfig):
        super().__init__(config)
        width = config.width
        self.prefix_tokens = int(config.pooling == "token")
        self.patch_embed = (
            ConvTokenizer(config.conv_layers, config.kernel_size, config.stride, config.in_channels, width)
            if config.conv_layers
            else PatchEmbed(config.patch_size, config.in_channels, width)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if self.prefix_tokens else None
        count = self.prefix_tokens + self.num_patches
        sine = config.positions == "sine"
        self.pos_embed = nn.Parameter(sin_cos_positions(count, width) if sine else torch.empty(1, count, width), requires_grad=not sine)
        self.pos_drop = nn.Dropout(config.dropout)
        options = {"qkv_bias": False, "attn_drop": config.attention_dropout, "proj_drop": config.dropout}
        self.blocks = self.new_blocks(lambda: Attention(width, config.heads, **options), CompactBlock)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention_pool = nn.Identity() if self.prefix_tokens else nn.Linear(width, 1)
        self.head = self.new_classifier(width)
        self.initialise()

    def check_patches(self) -> None:
        config = self.config
        for field, known in (("pooling", POOLINGS), ("positions", POSITIONS)):
            if getattr(config, field) not in known:
                check.fail("CompactConfig", field, f"be one of {', '.join(known)}", repr(getattr(config, field)))
        if not config.conv_layers:
            super().check_patches()
        elif config.kernel_size % 2 == 0:
            check.fail("CompactConfig", "kernel_size", "be odd", config.kernel_size, "the published models have 3 and 7")

    def initialise(self) -> None:
        truncated_normal_linears(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        if self.config.positions == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.2)

    @property
    def reduction(self) -> int:
        config = self.config
        return (2 * config.stride) ** config.conv_layers if config.conv_layers else config.patch_size

    @property
    def grid_size(self) -> tuple[int, int]:
        height, width = self.config.size
        # convolutions and poolings round up
        return -(-height // self.reduction), -(-width // self.reduction)

    def _embed(self, x: Tensor) -> Tensor:
        return self.pos_drop(prepend_tokens(self.patch_embed(x), self.cls_token) + self.pos_embed)

    def _logits(self, features: Tensor) -> Tensor:
        if self.prefix_tokens:
            return self.head(features[:, 0])
        weights = self.attention_pool(features).softmax(1)
        return self.head((weights.transpose(1, 2) @ features).squeeze(1))

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.attention_pool = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        *layers, head = super().group_prefixes()
        return [*layers, (*head, "attention_pool")]

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if not any(name.startswith("classifier.") for name in state):
            return state
        # convolutions for patches have biases, those in place of patches have none
        patches = "tokenizer.conv_layers.0.0.bias" in state
        converted = {}
        for name, value in state.items():
            for old, new in OFFICIAL_NAMES:
                name = name.replace(old, new)
            if name.startswith("patch_embed.convs."):
                index, kind = name.split(".")[2], name.split(".")[-1]
                name = f"patch_embed.proj.{kind}" if patches else f"patch_embed.convs.{index}.{kind}"
            converted[name] = value
        return converted

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        if self.config.positions == "sine" and "pos_embed" in state:
            state["pos_embed"] = self.pos_embed.detach()
            return []
        return carry_positions(state, "pos_embed", self.grid_size, self.prefix_tokens)


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, classes: int = 10, **fields: object) -> Variant:
    source = fields.pop("source", "arXiv:2104.05704")
    return Variant(CompactConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


NANO = {"source": "for tests and demonstrations", "width": 64, "depth": 2, "heads": 2, "mlp_ratio": 1.0, "conv_layers": 2}
SIZE2 = {"width": 128, "depth": 2, "heads": 2, "mlp_ratio": 1.0}
SIZE4 = {"width": 128, "depth": 4, "heads": 2, "mlp_ratio": 1.0}
SIZE6 = {"width": 256, "depth": 6, "heads": 4, "mlp_ratio": 2.0}
SIZE7 = {"width": 256, "depth": 7, "heads": 4, "mlp_ratio": 2.0}
SIZE14 = {"width": 384, "depth": 14, "heads": 6, "mlp_ratio": 3.0}
LARGE_IMAGES = {"conv_layers": 2, "kernel_size": 7, "stride": 2}

register(
    CompactTransformer,
    {
        "cct_nano_3x2_32": _variant(93_579, None, **NANO),
        "vit_lite_6_4_32": _variant(3_190_538, 0.205, pooling="token", **SIZE6),
        "vit_lite_7_4_32": _variant(3_716_874, 0.239, pooling="token", **SIZE7),
        "cvt_6_4_32": _variant(3_190_283, 0.202, **SIZE6),
        "cvt_7_4_32": _variant(3_716_619, 0.236, **SIZE7),
        "cct_2_3x2_32": _variant(283_723, 0.033, conv_layers=2, **SIZE2),
        "cct_4_3x2_32": _variant(482_123, 0.046, conv_layers=2, **SIZE4),
        "cct_6_3x1_32": _variant(3_233_803, 0.813, conv_layers=1, **SIZE6),
        "cct_6_3x2_32": _variant(3_326_923, 0.241, conv_layers=2, **SIZE6),
        "cct_7_3x1_32": _variant(3_760_139, 0.947, conv_layers=1, **SIZE7),
        "cct_7_3x1_32_sine": _variant(3_760_139, 0.947, conv_layers=1, positions="sine", **SIZE7),
        "cct_7_3x2_32": _variant(3_853_259, 0.275, conv_layers=2, **SIZE7),
        "cct_7_7x2_224": _variant(4_573_735, None, classes=102, img_size=224, **LARGE_IMAGES, **SIZE7),
        "cct_14_7x2_224": _variant(22_367_273, None, classes=1000, img_size=224, **LARGE_IMAGES, **SIZE14),
        "cct_14_7x2_384": _variant(22_513_193, None, 82.71, classes=1000, img_size=384, **LARGE_IMAGES, **SIZE14),
    },
)
