"""T2T-ViT: an image is folded into tokens in steps, neighbours after neighbours; a narrow, deep ViT follows.

Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", 2021.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import (
    Attention,
    Mlp,
    TokenAttention,
    TokenPerformer,
    carry_positions,
    prepend_tokens,
    sin_cos_positions,
    truncated_normal_linears,
)
from vtkernels.models._base import Config
from vtkernels.models._isotropic import Isotropic
from vtkernels.models._registry import Info, Variant, register

TOKENIZERS = ("performer", "transformer")


@dataclass(frozen=True, kw_only=True)
class T2TViTConfig(Config):
    """A T2T-ViT.

    Attributes:
        width, depth, heads: channels of a token, blocks, attention heads of the backbone.
        mlp_ratio: hidden channels of the MLPs over `width`.
        tokenizer: what looks at the tokens between two splits: "performer", or "transformer" in the t models.
        token_width: channels of the maps between two splits.
        token_dropout: of the performer, whatever `dropout` is.
        splits: (kernel, stride, padding) of the sliding windows that cut the image, then each map, into overlapping tokens.
        project_norm: whether the last tokens are normalised before they get their width.
    """

    width: int = 384
    depth: int = 14
    heads: int = 6
    mlp_ratio: float = 3.0
    tokenizer: str = "performer"
    token_width: int = 64
    token_dropout: float = 0.1
    splits: tuple[tuple[int, int, int], ...] = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
    project_norm: bool = False
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0


class TokenTransformer(nn.Module):
    """[B, N, dim] -> [B, N, width]: attention of one head, then an MLP that keeps the width."""

    def __init__(self, dim: int, width: int, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = TokenAttention(dim, width, scale=dim**-0.5)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def grid_after(split: tuple[int, int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a map's tokens."""
    kernel, stride, padding = split
    rows, columns = ((edge + 2 * padding - kernel) // stride + 1 for edge in size)
    return rows, columns


class TokensToToken(nn.Module):
    """[B, C, H, W] -> [B, N, width]: `attention1`, `attention2`, ... stand between the splits, `project` follows the last."""

    def __init__(self, config: T2TViTConfig):
        super().__init__()
        self.splits = config.splits
        channels, width = config.in_channels, config.token_width
        for index, (kernel, _, _) in enumerate(config.splits[:-1], 1):
            dim = channels * kernel**2
            if config.tokenizer == "performer":
                layer: nn.Module = TokenPerformer(dim, width, config.token_dropout, config.norm_eps)
            else:
                layer = TokenTransformer(dim, width, config.norm_eps)
            self.add_module(f"attention{index}", layer)
            channels = width
        dim = channels * config.splits[-1][0] ** 2
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.project_norm else nn.Identity()
        self.project = nn.Linear(dim, config.width)

    def forward(self, x: Tensor) -> Tensor:
        for index, (kernel, stride, padding) in enumerate(self.splits, 1):
            grid = grid_after((kernel, stride, padding), tuple(x.shape[2:]))
            tokens = F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)
            if index == len(self.splits):
                return self.project(self.norm(tokens))
            x = self.get_submodule(f"attention{index}")(tokens).transpose(1, 2).unflatten(2, grid)


class T2TViT(Isotropic):
    prefix_tokens = 1
    config: T2TViTConfig
    embedding = ("tokens_to_token", "cls_token", "pos_embed")

    def __init__(self, config: T2TViTConfig):
        super().__init__(config)
        width = config.width
        self.tokens_to_token = TokensToToken(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sin_cos_positions(1 + self.num_patches, width), requires_grad=False)
        self.pos_drop = nn.Dropout(config.dropout)
        options = {"qkv_bias": False, "attn_drop": config.attention_dropout, "proj_drop": config.dropout}
        self.blocks = self.new_blocks(lambda: Attention(width, config.heads, **options))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = self.new_classifier(width)
        self.initialise()

    def check_patches(self) -> None:
        _check(self.config)

    @property
    def reduction(self) -> int:
        return math.prod(stride for _, stride, _ in self.config.splits)

    @property
    def grid_size(self) -> tuple[int, int]:
        size = self.config.size
        for split in self.config.splits:
            size = grid_after(split, size)
        return size

    def initialise(self) -> None:
        truncated_normal_linears(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def _embed(self, x: Tensor) -> Tensor:
        x = self.run(self.tokens_to_token, x)
        return self.pos_drop(prepend_tokens(x, self.cls_token) + self.pos_embed)

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features[:, 0])

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}

    def sees_class_token(self, layer: str) -> bool:
        return layer.startswith("blocks.")

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        return carry_positions(state, "pos_embed", self.grid_size, prefix=1)


def _check(config: T2TViTConfig) -> None:
    if not config.splits or any(len(split) != 3 for split in config.splits):
        check.fail("T2TViTConfig", "splits", "be (kernel, stride, padding) of one window or more", config.splits)
    if config.tokenizer not in TOKENIZERS:
        check.fail("T2TViTConfig", "tokenizer", f"be one of {', '.join(TOKENIZERS)}", repr(config.tokenizer))
    size = config.size
    for split in config.splits:
        size = grid_after(split, size)
        if min(size) < 1:
            check.fail("T2TViTConfig", "img_size", "leave at least one token after every split", config.size, "try 32 pixels or more")


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, source: str = "arXiv:2101.11986", classes: int = 1000, **fields) -> Variant:
    return Variant(T2TViTConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


NARROW = {"width": 256, "heads": 4, "mlp_ratio": 2.0}
SIZE_19 = {"width": 448, "depth": 19, "heads": 7}
SIZE_24 = {"width": 512, "depth": 24, "heads": 8}
TRANSFORMER = {"tokenizer": "transformer"}
# Lee et al., "Vision Transformer for Small-Size Datasets", 2021: 64 tokens of images of 32 and of 64 pixels
SMALL_DATA = {"source": "arXiv:2112.13492", "depth": 12, "project_norm": True, **NARROW, **TRANSFORMER}
HALVING = (3, 2, 1)

register(
    T2TViT,
    {
        "t2t_vit_nano_32": _variant(153_040, None, None, "for tests and demonstrations", 10, img_size=32, width=64, depth=2, heads=2, token_width=32),
        "t2t_vit_small_data_32": _variant(6_502_720, None, classes=10, img_size=32, splits=(HALVING,) * 2, **SMALL_DATA),
        "t2t_vit_small_data_64": _variant(6_675_902, 0.643, classes=200, img_size=64, splits=(HALVING,) * 3, **SMALL_DATA),
        "t2t_vit_7": _variant(4_310_222, 1.1, 71.7, depth=7, **NARROW),
        "t2t_vit_10": _variant(5_889_230, 1.5, 75.2, depth=10, **NARROW),
        "t2t_vit_12": _variant(6_941_902, 1.8, 76.5, depth=12, **NARROW),
        "t2t_vit_14": _variant(21_545_550, 4.8, 81.5),
        "t2t_vit_14_resnext": _variant(21_545_550, None, heads=32),
        "t2t_vit_14_wide": _variant(25_156_302, None, width=768, depth=4, heads=12),
        "t2t_vit_19": _variant(39_177_422, 8.5, 81.9, **SIZE_19),
        "t2t_vit_24": _variant(64_105_934, 13.8, 82.3, **SIZE_24),
        "t2t_vit_t_14": _variant(21_541_070, 6.1, 81.7, **TRANSFORMER),
        "t2t_vit_t_19": _variant(39_172_942, 9.8, 82.4, **SIZE_19, **TRANSFORMER),
        "t2t_vit_t_24": _variant(64_101_454, 15.0, 82.6, **SIZE_24, **TRANSFORMER),
    },
)
