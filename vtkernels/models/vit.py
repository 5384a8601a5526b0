"""ViT and DeiT: patches as tokens, a class token, learned positions, pre-norm blocks of full attention.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020; Touvron et al., "Training data-efficient image transformers", 2020.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import Attention, Block, PatchEmbed, linear_rates, resize_positions
from vtkernels.models._base import Config, MapInfo, Model
from vtkernels.models._registry import Info, Variant, register

POOLINGS = ("token", "norm_then_mean", "mean_then_norm")


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Config):
    """A ViT.

    Attributes:
        width, depth, heads: channels of a token, blocks, attention heads.
        mlp_ratio: hidden channels of the MLP over `width`.
        class_token: whether a learned token is put before the patches.
        distilled: whether DeiT's distillation token and its head follow the class token.
        pooling: "token" reads the class token; the others average the patches, after the final norm or before it.
        activation: "gelu", or "gelu_tanh" as in the original JAX code.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_token: bool = True
    distilled: bool = False
    pooling: str = "token"
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0


class VisionTransformer(Model):
    fixed_size = True

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        width = config.width
        _check(config)
        self.prefix_tokens = int(config.class_token) + int(config.distilled)
        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if config.distilled else None
        rows, columns = self.grid_size
        self.pos_embed = nn.Parameter(torch.empty(1, self.prefix_tokens + rows * columns, width))
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                width,
                Attention(width, config.heads, config.qkv_bias, attn_drop=config.attention_dropout, proj_drop=config.dropout),
                int(width * config.mlp_ratio),
                eps=config.norm_eps,
                act=config.activation,
                drop=config.dropout,
                drop_path=rate,
            )
            for rate in linear_rates(config.drop_path, config.depth)
        )
        # timm calls the final norm by another name where it comes after pooling
        norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm, self.fc_norm = (nn.Identity(), norm) if config.pooling == "mean_then_norm" else (norm, nn.Identity())
        self.head = self.new_classifier(width)
        if config.distilled:
            self.classifiers = ("head", "head_dist")
            self.head_dist = self.new_classifier(width)
        # both heads' logits in training, for a loss that teaches the second one
        self.distilled_training = False
        self.initialise()

    @property
    def grid_size(self) -> tuple[int, int]:
        height, width = self.config.size
        return height // self.config.patch_size, width // self.config.patch_size

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.pos_embed, self.cls_token, self.dist_token):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        return self.pos_drop(torch.cat((*prefix, x), 1) + self.pos_embed)

    def _features(self, x: Tensor) -> Tensor:
        x = self._embed(x)
        for block in self.blocks:
            x = self.run(block, x)
        return self.norm(x)

    def _logits(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.config.distilled:
            logits, distilled = self.head(features[:, 0]), self.head_dist(features[:, 1])
            return (logits, distilled) if self.training and self.distilled_training else (logits + distilled) / 2
        pooled = features[:, 0] if self.config.pooling == "token" else features[:, self.prefix_tokens :].mean(1)
        return self.head(self.fc_norm(pooled))

    def _maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self._embed(x), []
        for index, block in enumerate(self.blocks):
            x = self.run(block, x)
            if index in self._map_blocks:
                maps.append(x[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, self.grid_size))
        return maps

    @property
    def _map_blocks(self) -> tuple[int, ...]:
        """The last block of each quarter of the depth."""
        depth = self.config.depth
        return tuple(sorted({(depth * quarter + 3) // 4 - 1 for quarter in range(1, 5)}))

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(self.config.width, self.config.patch_size)] * len(self._map_blocks)

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.norm, self.fc_norm = nn.Identity(), nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "dist_token"}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"blocks.{index}",) for index in range(self.config.depth)]
        return [("patch_embed", "pos_embed", "cls_token", "dist_token"), *blocks, ("norm", "fc_norm", "head", "head_dist")]

    def grid(self, x: Tensor) -> tuple[int, int]:
        return self.grid_size

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_torchvision(state) if "class_token" in state else state

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        table = state.get("pos_embed")
        if table is None or table.shape[1] == self.pos_embed.shape[1]:
            return []
        count = table.shape[1] - self.prefix_tokens
        side = round(count**0.5)
        if side * side != count:
            return []
        state["pos_embed"] = resize_positions(table, (side, side), self.grid_size, self.prefix_tokens)
        return ["pos_embed"]


def _check(config: ViTConfig) -> None:
    if config.pooling not in POOLINGS:
        check.fail("ViTConfig", "pooling", f"be one of {', '.join(POOLINGS)}", repr(config.pooling))
    if config.pooling == "token" and not config.class_token:
        check.fail("ViTConfig", "pooling", "average the patches where there is no class token", repr(config.pooling), "try pooling='norm_then_mean'")
    if any(edge % config.patch_size or edge < 1 for edge in config.size):
        check.fail("ViTConfig", "img_size", f"be multiples of patch_size={config.patch_size}", config.size, "change img_size or patch_size")


def _from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = (
        ("class_token", "cls_token"),
        ("conv_proj.", "patch_embed.proj."),
        ("encoder.pos_embedding", "pos_embed"),
        ("encoder.layers.encoder_layer_", "blocks."),
        ("encoder.ln.", "norm."),
        ("heads.head.", "head."),
        (".ln_1.", ".norm1."),
        (".ln_2.", ".norm2."),
        (".self_attention.in_proj_", ".attn.qkv."),
        (".self_attention.out_proj.", ".attn.proj."),
        (".mlp.0.", ".mlp.fc1."),
        (".mlp.3.", ".mlp.fc2."),
        (".mlp.linear_1.", ".mlp.fc1."),
        (".mlp.linear_2.", ".mlp.fc2."),
    )
    converted = {}
    for name, value in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        converted[name] = value
    return converted


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, source: str = "arXiv:2010.11929", **fields: object) -> Variant:
    return Variant(ViTConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source))


TINY = {"width": 192, "depth": 12, "heads": 3}
SMALL = {"width": 384, "depth": 12, "heads": 6}
BASE = {"width": 768, "depth": 12, "heads": 12}
LARGE = {"width": 1024, "depth": 24, "heads": 16}
HUGE = {"width": 1280, "depth": 32, "heads": 16}
DEIT = "arXiv:2012.12877"

register(
    VisionTransformer,
    {
        "vit_nano_patch4_32": _variant(172_456, None, source="for tests and demonstrations", img_size=32, patch_size=4, width=64, depth=2, heads=2),
        "vit_tiny_patch16_224": _variant(5_717_416, 1.26, **TINY),
        "vit_small_patch32_224": _variant(22_878_952, 1.15, patch_size=32, **SMALL),
        "vit_small_patch16_224": _variant(22_050_664, 4.61, 78.842, **SMALL),
        "vit_base_patch16_224": _variant(86_567_656, 17.58, 79.154, **BASE),
        "deit_tiny_patch16_224": _variant(5_717_416, 1.26, 72.2, DEIT, **TINY),
        "deit_tiny_distilled_patch16_224": _variant(5_910_800, 1.27, 74.5, DEIT, distilled=True, **TINY),
    },
)
