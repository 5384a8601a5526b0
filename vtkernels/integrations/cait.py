"""CaiT's two kinds of attention; timm's classes and the official ones differ in name only."""

from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.layers import rate
from vtkernels.integrations.rules import DROPOUT, LINEAR, Part, replaces
from vtkernels.ops.class_attention import class_attention
from vtkernels.ops.talking_heads_attention import talking_heads_attention

_OFFICIAL_FILES = ("*.cait", "*.cait_models")


def tokens(generator: torch.Generator, channels: int) -> tuple[Any, ...]:
    return (torch.randn(2, 11, channels, generator=generator, dtype=torch.float64),)


def refuse_dropout(attn: nn.Module) -> str | None:
    p = getattr(attn.attn_drop, "p", 0.0)
    return f"its attention dropout is {p}; the op takes less than 1" if p >= 1 else None


@replaces(
    "class_attention",
    parts={
        "": Part(
            ("timm.models.cait:ClassAttn", *(f"{file}:Class_Attention" for file in _OFFICIAL_FILES)),
            children=("q", "k", "v", "attn_drop", "proj", "proj_drop"),
        ),
        "q": LINEAR,
        "k": LINEAR,
        "v": LINEAR,
        "attn_drop": DROPOUT,
        "proj": LINEAR,
        "proj_drop": DROPOUT,
    },
    sample=lambda attn: {
        "tokens": attn.q.weight.new_empty(1, 2, attn.q.in_features),
        **{f"{name}_weight": getattr(attn, name).weight for name in "qkv"},
        "num_heads": attn.num_heads,
    },
    example=lambda attn, generator: tokens(generator, attn.q.in_features),
    refuses=refuse_dropout,
    variant=lambda attn: (attn.q.bias is None, getattr(attn, "fused_attn", None)),
)
def attend_by_class(attn: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    q, k, v = attn.q, attn.k, attn.v
    out = class_attention(
        x, q.weight, k.weight, v.weight, q.bias, k.bias, v.bias,
        num_heads=attn.num_heads, scale=attn.scale, dropout_p=rate(attn.attn_drop), backend=backend,
    )  # fmt: skip
    return attn.proj_drop(attn.proj(out[:, None]))


@replaces(
    "talking_heads_attention",
    parts={
        "": Part(
            ("timm.models.cait:TalkingHeadAttn", *(f"{file}:Attention_talking_head" for file in _OFFICIAL_FILES)),
            children=("qkv", "attn_drop", "proj", "proj_l", "proj_w", "proj_drop"),
        ),
        "qkv": LINEAR,
        "attn_drop": DROPOUT,
        "proj": LINEAR,
        "proj_l": LINEAR,
        "proj_w": LINEAR,
        "proj_drop": DROPOUT,
    },
    sample=lambda attn: {
        "qkv": attn.qkv.weight.new_empty(1, 2, attn.qkv.out_features),
        "pre_weight": attn.proj_l.weight,
        "pre_bias": attn.proj_l.bias,
        "post_weight": attn.proj_w.weight,
        "post_bias": attn.proj_w.bias,
        "num_heads": attn.num_heads,
    },
    example=lambda attn, generator: tokens(generator, attn.qkv.in_features),
    refuses=refuse_dropout,
    variant=lambda attn: attn.qkv.bias is None,
)
def attend_by_talking_heads(attn: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    out = talking_heads_attention(
        attn.qkv(x), attn.proj_l.weight, attn.proj_l.bias, attn.proj_w.weight, attn.proj_w.bias,
        num_heads=attn.num_heads, scale=attn.scale, dropout_p=rate(attn.attn_drop), backend=backend,
    )  # fmt: skip
    return attn.proj_drop(attn.proj(out))
