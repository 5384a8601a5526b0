"""CvT: a pyramid whose attention takes queries, keys and values from depthwise convolutions, and needs no positions.

Wu et al., "CvT: Introducing Convolutions to Vision Transformers", 2021. This is the authors' network; `cvt_drloc.py` has
another of that name.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Block, linear_rates, prepend_tokens, truncated_normal_linears
from vtkernels.models._base import Config, MapInfo, Model
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class CvtConfig(Config):
    """A CvT.

    Attributes:
        widths, depths, heads: channels, blocks and attention heads of each stage.
        stem_stride: pixels between the first stage's tokens; smaller ones suit small images and change no parameter.
        mlp_ratio: hidden channels of the MLPs over their input's.
        drop_path: grows from 0 to this rate within the last stage; the others have none.
    """

    widths: tuple[int, ...] = (64, 192, 384)
    depths: tuple[int, ...] = (1, 2, 10)
    heads: tuple[int, ...] = (1, 3, 6)
    stem_stride: int = 4
    mlp_ratio: float = 4.0
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0


class ConvEmbed(nn.Module):
    """[B, C, H, W] -> [B, H / s, W / s, D]: an overlapping convolution, normalised."""

    def __init__(self, kernel: int, stride: int, in_channels: int, dim: int, eps: float):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding=(kernel - stride + 1) // 2)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvAttention(nn.Module):
    """[B, p + H W, C] -> [B, p + H W, C], where p is 1 if a class token comes first; it bypasses the convolutions.

    Keys and values live on the map of every second row and column. Scores are scaled by the full width, not by a head's.
    """

    def __init__(self, dim: int, num_heads: int, prefix_tokens: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            check.fail("ConvAttention", "dim", f"be a multiple of num_heads={num_heads}", dim)
        self.num_heads = num_heads
        self.prefix_tokens = prefix_tokens
        self.scale = dim**-0.5
        self.attn_drop = attn_drop
        self.conv_proj_q, self.conv_proj_k, self.conv_proj_v = (depthwise(dim, stride) for stride in (1, 2, 2))
        self.proj_q, self.proj_k, self.proj_v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self, x: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """q [B, h, N, D], k and v [B, h, M, D]."""
        tokens, x = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :].unflatten(1, grid).permute(0, 3, 1, 2)
        projections = ((self.conv_proj_q, self.proj_q), (self.conv_proj_k, self.proj_k), (self.conv_proj_v, self.proj_v))
        found = []
        for convolution, linear in projections:
            projected = linear(torch.cat((tokens, convolution(x).flatten(2).transpose(1, 2)), 1))
            found.append(projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        return found

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        q, k, v = self.heads(x, grid)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def attention_weights(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, h, N, M]: what `forward` weighs the values with."""
        q, k, _ = self.heads(x, grid)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1)


def depthwise(dim: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=False)
    return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(dim)))


class CvtBlock(Block):
    """The pre-norm block, told the map's size."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CvtStage(nn.Module):
    """`patch_embed` shrinks the map; `cls_token`, in the last stage, is put before its tokens; `blocks` follow."""

    def __init__(self, config: CvtConfig, index: int):
        super().__init__()
        width, last = config.widths[index], index == len(config.widths) - 1
        kernel, stride = (3, 2) if index else (7, config.stem_stride)
        self.patch_embed = ConvEmbed(kernel, stride, config.widths[index - 1] if index else config.in_channels, width, config.norm_eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if last else None
        self.blocks = nn.ModuleList(
            CvtBlock(
                width,
                ConvAttention(width, config.heads[index], int(last), config.attention_dropout, config.dropout),
                int(width * config.mlp_ratio),
                eps=config.norm_eps,
                act=config.activation,
                drop=config.dropout,
                drop_path=rate,
            )
            for rate in linear_rates(config.drop_path if last else 0.0, config.depths[index])
        )


class CvT(Model):
    prefix_tokens = 1

    def __init__(self, config: CvtConfig):
        super().__init__(config)
        check_stages("CvtConfig", config.widths, config.depths, config.heads)
        for index in range(len(config.widths)):
            self.add_module(f"stage{index}", CvtStage(config, index))
        self.norm = nn.LayerNorm(config.widths[-1], eps=config.norm_eps)
        self.head = self.new_classifier(config.widths[-1])
        self.initialise()

    @property
    def stages(self) -> list[CvtStage]:
        return [self.get_submodule(f"stage{index}") for index in range(len(self.config.widths))]

    def initialise(self) -> None:
        for stage in self.stages:
            truncated_normal_linears(stage)
        nn.init.trunc_normal_(self.stages[-1].cls_token, std=0.02)
        if isinstance(self.head, nn.Linear):
            self.initialise_classifier(self.head)

    def initialise_classifier(self, head: nn.Linear) -> None:
        # its bias keeps torch's random values, as published
        nn.init.trunc_normal_(head.weight, std=0.02)

    def _walk(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens of the last stage, and the maps [B, D, H, W] of all."""
        maps = []
        for stage in self.stages:
            x = stage.patch_embed(x)
            grid = (x.shape[1], x.shape[2])
            tokens = prepend_tokens(x.flatten(1, 2), stage.cls_token)
            for block in stage.blocks:
                tokens = self.run(block, tokens, grid)
            prefix = int(stage.cls_token is not None)
            x = tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
            maps.append(x)
        return tokens, maps

    def _features(self, x: Tensor) -> Tensor:
        return self.norm(self._walk(x)[0])

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features[:, 0])

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self._walk(x)[1]

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(width, self.config.stem_stride << index) for index, width in enumerate(self.config.widths)]

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.norm = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        return {f"stage{len(self.config.widths) - 1}.cls_token"}

    def group_prefixes(self) -> list[tuple[str, ...]]:
        groups = []
        for index, depth in enumerate(self.config.depths):
            groups.append((f"stage{index}.patch_embed", f"stage{index}.cls_token"))
            groups += [(f"stage{index}.blocks.{block}",) for block in range(depth)]
        return [*groups, ("norm", "head")]

    def grid(self, x: Tensor) -> tuple[int, int]:
        """(rows, columns) of the keys of the last stage, where the class token is."""
        size = tuple(x.shape[2:])
        for stage in self.stages:
            convolution = stage.patch_embed.proj
            padding, kernel, stride = convolution.padding[0], convolution.kernel_size[0], convolution.stride[0]
            size = tuple((edge + 2 * padding - kernel) // stride + 1 for edge in size)
        return (size[0] + 1) // 2, (size[1] + 1) // 2

    def sees_class_token(self, layer: str) -> bool:
        return layer.startswith(f"stage{len(self.config.widths) - 1}.")

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_transformers(state) if any(".convolution_embeddings." in name for name in state) else state


def check_stages(config: str, widths: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...]) -> None:
    if not widths or not len(widths) == len(depths) == len(heads) or min(depths) < 1:
        check.fail(config, "widths, depths and heads", "give as many stages, each of one block or more", f"{widths}, {depths} and {heads}")


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = (
        (r"^(cvt\.)?encoder\.stages\.(\d+)\.", r"stage\2."),
        (r"\.embedding\.convolution_embeddings\.projection\.", ".patch_embed.proj."),
        (r"\.embedding\.convolution_embeddings\.normalization\.", ".patch_embed.norm."),
        (r"\.layers\.", ".blocks."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.attention\.convolution_projection_(\w)\w*\.convolution_projection\.convolution\.", r".attn.conv_proj_\1.conv."),
        (r"\.attention\.attention\.convolution_projection_(\w)\w*\.convolution_projection\.normalization\.", r".attn.conv_proj_\1.bn."),
        (r"\.attention\.attention\.projection_(\w)\w*\.", r".attn.proj_\1."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"^layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    )
    converted = {}
    for name, value in state.items():
        for old, new in renames:
            name = re.sub(old, new, name)
        converted[name] = value
    return converted


def _variant(parameters: int, gmacs: float | None, top1: float | None = None, source: str = "arXiv:2103.15808", classes: int = 1000, **fields) -> Variant:
    return Variant(CvtConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


DEPTHS_21 = (1, 4, 16)
NANO = {"img_size": 32, "widths": (16, 32, 48), "depths": (1, 1, 2), "heads": (1, 2, 3)}
WIDE = {"widths": (192, 768, 1024), "depths": (2, 2, 20), "heads": (3, 12, 16)}

register(
    CvT,
    {
        "cvt_nano_32": _variant(98_986, None, None, "for tests and demonstrations", 10, **NANO),
        "cvt_13": _variant(19_997_480, 4.5, 81.6),
        "cvt_13_32": _variant(19_616_330, None, classes=10, img_size=32, stem_stride=2),
        "cvt_13_384": _variant(19_997_480, 16.3, 83.0, img_size=384),
        "cvt_21": _variant(31_622_696, 7.1, 82.5, depths=DEPTHS_21),
        "cvt_21_384": _variant(31_622_696, 24.9, 83.3, depths=DEPTHS_21, img_size=384),
        "cvt_w24_384": _variant(277_196_392, 193.2, 87.6, img_size=384, **WIDE),
    },
)
