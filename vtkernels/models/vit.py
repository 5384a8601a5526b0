"""ViT and DeiT: patches as tokens, a class token, learned positions, pre-norm blocks of full attention.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020; Touvron et al., "Training data-efficient image transformers", 2020.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import (
    Attention,
    Block,
    Mlp,
    PatchEmbed,
    ScaledBlock,
    carry_positions,
    lecun_normal,
    linear_rates,
    prepend_tokens,
    truncated_normal_linears,
    xavier_normal,
)
from vtkernels.models._isotropic import Isotropic, IsotropicConfig
from vtkernels.models._registry import Info, Variant, register
from vtkernels.models._vit_names import canonical_names

POOLINGS = ("token", "norm_then_mean", "mean_then_norm")
DROP_PATH_RULES = ("linear", "constant")
INITS = ("timm", "deit", "jax", "torch", "xavier")


@dataclass(frozen=True, kw_only=True)
class ViTConfig(IsotropicConfig):
    """A ViT.

    Attributes:
        heads: attention heads.
        mlp_ratio: hidden channels of the MLP over `width`.
        class_token: whether a learned token is put before the patches.
        distilled: whether DeiT's distillation token and its head follow the class token.
        pooling: "token" reads the class token; the others average the patches, after the final norm or before it.
        activation: "gelu", or "gelu_tanh" as in the original JAX code.
        dropout, embedding_dropout: of both branches of a block, and of the tokens with their positions, where None means `dropout`.
        layer_scale: initial value of a factor of each channel at the end of both branches; None leaves the factors out.
        drop_path_rule: "linear" lets `drop_path` grow from 0 with depth, "constant" is the same in all blocks.
        class_position: whether the class token has a position, too.
        init: initial values as in "timm", "deit" or the original code, "jax"; or tokens and positions of unit variance beside weights
            by torch's default ("torch") or by Glorot's normal distribution ("xavier").
    """

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
    embedding_dropout: float | None = None
    attention_dropout: float = 0.0
    layer_scale: float | None = None
    drop_path_rule: str = "linear"
    class_position: bool = True
    init: str = "timm"


class VisionTransformer(Isotropic):
    embedding = ("patch_embed", "pos_embed", "cls_token", "dist_token")

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.check_config()
        width = config.width
        self.prefix_tokens = int(config.class_token) + int(config.distilled)
        self.patch_embed = self.new_patch_embed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if config.distilled else None
        self.placed_tokens = self.prefix_tokens if config.class_position else 0
        self.pos_embed = nn.Parameter(torch.empty(1, self.placed_tokens + self.num_patches, width))
        self.pos_drop = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(self.new_block(rate) for rate in self.drop_rates())
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

    def check_config(self) -> None:
        config, name = self.config, type(self.config).__name__
        if config.pooling not in POOLINGS:
            check.fail(name, "pooling", f"be one of {', '.join(POOLINGS)}", repr(config.pooling))
        if config.pooling == "token" and not config.class_token:
            check.fail(name, "pooling", "average the patches where there is no class token", repr(config.pooling), "try pooling='norm_then_mean'")
        if config.distilled and not (config.class_token and config.pooling == "token"):
            check.fail(name, "distilled", "come with a class token and pooling='token'", config.distilled, "try class_token=True, pooling='token'")
        if config.drop_path_rule not in DROP_PATH_RULES:
            check.fail(name, "drop_path_rule", f"be one of {', '.join(DROP_PATH_RULES)}", repr(config.drop_path_rule))
        if config.init not in INITS:
            check.fail(name, "init", f"be one of {', '.join(INITS)}", repr(config.init))

    # what related families replace

    def new_patch_embed(self) -> nn.Module:
        return PatchEmbed(self.config.patch_size, self.config.in_channels, self.config.width)

    def new_block(self, drop_path: float) -> nn.Module:
        config = self.config
        sizes = config.width, self.new_attention(), int(config.width * config.mlp_ratio)
        options = {"eps": config.norm_eps, "act": config.activation, "drop": config.dropout, "drop_path": drop_path}
        return Block(*sizes, **options) if config.layer_scale is None else ScaledBlock(*sizes, config.layer_scale, **options)

    def new_attention(self) -> nn.Module:
        config = self.config
        return Attention(config.width, config.heads, config.qkv_bias, attn_drop=config.attention_dropout, proj_drop=config.dropout)

    def drop_rates(self) -> list[float]:
        config = self.config
        return [config.drop_path] * config.depth if config.drop_path_rule == "constant" else linear_rates(config.drop_path, config.depth)

    def initialise(self) -> None:
        if self.config.init == "jax":
            self._initialise_as_jax()
        elif self.config.init in ("torch", "xavier"):
            if self.config.init == "xavier":
                xavier_normal(self)
            for table in self._tables():
                nn.init.normal_(table)
        else:
            truncated_normal_linears(self)
            for table in self._tables():
                nn.init.trunc_normal_(table, std=0.02)
            if self.config.init == "timm" and self.cls_token is not None:
                nn.init.normal_(self.cls_token, std=1e-6)

    def _initialise_as_jax(self) -> None:
        for module in self.modules():
            if isinstance(module, Attention):
                # queries, keys and values are layers of their own there: the bound is that of [D, D]
                for weight in (*module.qkv.weight.chunk(3), module.proj.weight):
                    nn.init.xavier_uniform_(weight)
                for layer in (module.qkv, module.proj):
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
            elif isinstance(module, Mlp):
                for layer in (module.fc1, module.fc2):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.normal_(layer.bias, std=1e-6)
            elif isinstance(module, nn.Conv2d):
                lecun_normal(module)
        nn.init.normal_(self.pos_embed, std=0.02)
        for name in self.classifiers:
            if isinstance(head := self.get_submodule(name), nn.Linear):
                self.initialise_classifier(head)

    def _tables(self) -> list[nn.Parameter]:
        return [table for table in (self.pos_embed, self.cls_token, self.dist_token) if table is not None]

    def initialise_classifier(self, head: nn.Linear) -> None:
        if self.config.init == "jax":
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        elif self.config.init == "xavier":
            xavier_normal(head)
        elif self.config.init != "torch":
            super().initialise_classifier(head)

    def _embed(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        if self.placed_tokens == self.prefix_tokens:
            return self.pos_drop(prepend_tokens(patches, self.cls_token, self.dist_token) + self.pos_embed)
        return self.pos_drop(prepend_tokens(patches + self.pos_embed, self.cls_token, self.dist_token))

    def _logits(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.config.distilled:
            logits, distilled = self.head(features[:, 0]), self.head_dist(features[:, 1])
            return (logits, distilled) if self.training and self.distilled_training else (logits + distilled) / 2
        return self.head(self.fc_norm(self.pool(features)))

    def pool(self, features: Tensor) -> Tensor:
        return features[:, 0] if self.config.pooling == "token" else features[:, self.prefix_tokens :].mean(1)

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.fc_norm = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "dist_token"}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        *layers, head = super().group_prefixes()
        return [*layers, (*head, "fc_norm", "head_dist")]

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return canonical_names(state)

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        return carry_positions(state, "pos_embed", self.grid_size, self.placed_tokens)


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, **fields: object) -> Variant:
    source, classes = fields.pop("source", "arXiv:2010.11929"), fields.pop("classes", 1000)
    return Variant(ViTConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


TINY = {"width": 192, "depth": 12, "heads": 3}
SMALL = {"width": 384, "depth": 12, "heads": 6}
BASE = {"width": 768, "depth": 12, "heads": 12}
LARGE = {"width": 1024, "depth": 24, "heads": 16}
HUGE = {"width": 1280, "depth": 32, "heads": 16}
GAP = {"class_token": False, "pooling": "norm_then_mean"}
DEIT = {"source": "arXiv:2012.12877", "init": "deit"}
DISTILLED = {**DEIT, "distilled": True}
DEIT_III = {"source": "arXiv:2204.07118", "init": "deit", "layer_scale": 1e-4, "drop_path_rule": "constant", "class_position": False}
DRLOC = {"source": "arXiv:2106.03746", "init": "torch", "qkv_bias": False, "norm_eps": 1e-5, "dropout": 0.1, "embedding_dropout": 0.0}

# accuracies are of weights trained on ImageNet-1k alone where such are published, else of those pretrained on ImageNet-21k
register(
    VisionTransformer,
    {
        "vit_nano_patch4_32": _variant(172_456, None, source="for tests and demonstrations", img_size=32, patch_size=4, width=64, depth=2, heads=2),
        "vit_tiny_patch16_224": _variant(5_717_416, 1.26, 75.452, **TINY),
        "vit_tiny_patch16_384": _variant(5_790_376, None, 78.22, img_size=384, **TINY),
        "vit_small_patch32_224": _variant(22_878_952, 1.15, 76.010, patch_size=32, **SMALL),
        "vit_small_patch32_384": _variant(22_915_432, None, 79.58, patch_size=32, img_size=384, **SMALL),
        "vit_small_patch16_224": _variant(22_050_664, 4.61, 78.842, **SMALL),
        "vit_small_patch16_384": _variant(22_196_584, None, 81.13, img_size=384, **SMALL),
        "vit_small_patch16_224_gap": _variant(22_049_896, None, **GAP, **SMALL),
        "vit_small_patch14_224": _variant(22_004_584, 6.12, patch_size=14, **SMALL),
        "vit_small_patch8_224": _variant(22_055_272, 22.44, patch_size=8, **SMALL),
        "vit_base_patch32_224": _variant(88_224_232, 4.41, 74.908, patch_size=32, **BASE),
        "vit_base_patch32_384": _variant(88_297_192, None, 78.75, patch_size=32, img_size=384, **BASE),
        "vit_base_patch16_224": _variant(86_567_656, 17.58, 79.154, **BASE),
        "vit_base_patch16_384": _variant(86_859_496, 55.54, 81.10, img_size=384, **BASE),
        "vit_base_patch16_224_gap": _variant(86_566_120, None, **GAP, **BASE),
        "vit_base_patch8_224": _variant(86_576_872, 78.22, 85.838, patch_size=8, **BASE),
        "vit_large_patch32_224": _variant(306_535_400, 15.39, patch_size=32, **LARGE),
        "vit_large_patch32_384": _variant(306_632_680, None, 81.89, patch_size=32, img_size=384, **LARGE),
        "vit_large_patch16_224": _variant(304_326_632, 61.60, 85.856, **LARGE),
        "vit_large_patch16_384": _variant(304_715_752, None, 85.59, img_size=384, **LARGE),
        "vit_large_patch14_224": _variant(304_203_752, 81.08, patch_size=14, **LARGE),
        "vit_huge_patch14_224": _variant(632_045_800, 167.40, patch_size=14, **HUGE),
        "vit_tiny_patch4_32": _variant(5_362_762, 0.365, classes=10, img_size=32, patch_size=4, **TINY),
        "vit_tiny_patch2_32": _variant(5_392_714, 1.669, classes=10, img_size=32, patch_size=2, **TINY),
        "vit_tiny_patch8_64": _variant(5_427_080, None, classes=200, img_size=64, patch_size=8, **TINY),
        "vit_small_patch4_32": _variant(21_342_346, 1.420, classes=10, img_size=32, patch_size=4, **SMALL),
        "vit_base_patch4_32": _variant(85_152_010, 5.601, classes=10, img_size=32, patch_size=4, **BASE),
        "vit_drloc_base_patch16_224": _variant(86_540_008, None, **DRLOC, **BASE),
        "deit_tiny_patch16_224": _variant(5_717_416, 1.26, 72.2, **DEIT, **TINY),
        "deit_small_patch16_224": _variant(22_050_664, 4.61, 79.9, **DEIT, **SMALL),
        "deit_base_patch16_224": _variant(86_567_656, 17.58, 81.8, **DEIT, **BASE),
        "deit_base_patch16_384": _variant(86_859_496, 55.54, 82.9, img_size=384, **DEIT, **BASE),
        "deit3_small_patch16_224": _variant(22_059_496, 4.61, 81.4, **DEIT_III, **SMALL),
        "deit3_base_patch16_224": _variant(86_585_320, 17.58, 83.8, **DEIT_III, **BASE),
        "deit3_large_patch16_224": _variant(304_374_760, 61.60, 84.9, **DEIT_III, **LARGE),
        "deit3_huge_patch14_224": _variant(632_126_440, 167.40, 85.2, patch_size=14, **DEIT_III, **HUGE),
        "deit_tiny_distilled_patch16_224": _variant(5_910_800, 1.27, 74.5, **DISTILLED, **TINY),
        "deit_small_distilled_patch16_224": _variant(22_436_432, 4.63, 81.2, **DISTILLED, **SMALL),
        "deit_base_distilled_patch16_224": _variant(87_338_192, 17.68, 83.4, **DISTILLED, **BASE),
        "deit_base_distilled_patch16_384": _variant(87_630_032, 55.65, 85.2, img_size=384, **DISTILLED, **BASE),
    },
)
