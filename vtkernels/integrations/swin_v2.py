"""SwinV2's blocks: cosine attention, whose position bias an MLP computes."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.layers import padded, project, project_together, rate
from vtkernels.integrations.rules import DROPOUT, LINEAR, SOFTMAX, Part, replaces
from vtkernels.integrations.swin import (
    OFFICIAL_BLOCK_CHILDREN,
    huggingface_example,
    mask_fits,
    mask_refusal,
    official_example,
    official_map,
    official_refusal,
    pair,
    ragged,
    random_map,
    refuse_window,
    timm_example,
    torchvision_refusal,
    torchvision_shift,
    window_sample,
)
from vtkernels.layers.autocast import without_autocast
from vtkernels.ops.window_attention import window_attention

LARGEST_LOGIT_SCALE = math.log(100.0)
_POSITION_MLP = Part(("torch.nn.modules.container:Sequential",), children=("0", "1", "2"))
_RELU = Part(("torch.nn.modules.activation:ReLU",))


def position_mlp(path: str) -> dict[str, Part]:
    return {path: _POSITION_MLP, f"{path}.0": LINEAR, f"{path}.1": _RELU, f"{path}.2": LINEAR}


def position_table(mlp: nn.Module, coordinates: Tensor) -> Tensor:
    """[(2 Wh - 1)(2 Ww - 1), heads]: the bias of each offset."""
    # bfloat16 would round the bias, up to 16, by 0.03; the MLP is too small to gain from it
    with without_autocast(coordinates):
        return 16.0 * mlp(coordinates).flatten(0, -2).sigmoid()


def cosine_attend(
    qkv: Tensor, bias: Tensor | None, attn: nn.Module, mlp: nn.Module, *, window: Any, shift: Any, drop: float, backend: str, **options: Any
) -> Tensor:
    window = pair(window)
    return window_attention(
        qkv,
        position_table(mlp, attn.relative_coords_table),
        num_heads=attn.logit_scale.shape[0],
        window_size=window,
        shift_size=pair(shift),
        logit_scale=attn.logit_scale.flatten().clamp(max=LARGEST_LOGIT_SCALE).exp(),
        qkv_bias=bias if padded(qkv, window) else None,
        dropout_p=drop,
        backend=backend,
        **options,
    )


def query_value_bias(attn: nn.Module) -> Tensor | None:
    """Keys have no bias, which a softmax of cosines would see."""
    return None if attn.q_bias is None else torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))


_ATTENTION = {
    "parameters": ("logit_scale",),
    "optional": ("q_bias", "v_bias"),
    "children": ("cpb_mlp", "qkv", "attn_drop", "proj", "proj_drop", "softmax"),
}
_ATTENTION_PARTS = {
    **position_mlp("attn.cpb_mlp"),
    "attn.qkv": LINEAR,
    "attn.attn_drop": DROPOUT,
    "attn.proj": LINEAR,
    "attn.proj_drop": DROPOUT,
    "attn.softmax": SOFTMAX,
}


def biased_keys(attn: nn.Module) -> str | None:
    keys = getattr(attn, "k_bias", None)
    return "its keys have a learned bias" if isinstance(keys, nn.Parameter) or attn.qkv.bias is not None else None


@replaces(
    "window_attention",
    method="_attn",
    parts={
        "": Part(("timm.models.swin_transformer_v2:SwinTransformerV2Block",), ("forward", "_attn", "get_attn_mask"), children=None),
        "attn": Part(("timm.models.swin_transformer_v2:WindowAttention",), **_ATTENTION),
        **_ATTENTION_PARTS,
    },
    sample=lambda block: window_sample(block.attn.qkv, block.attn.num_heads, block.window_size),
    example=timm_example,
    refuses=lambda block: biased_keys(block.attn) or mask_refusal(block),
    variant=lambda block: (tuple(map(bool, block.shift_size)), block.attn.q_bias is None, block.attn.qkv_bias_separate),
)
def timm_block(block: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    if not mask_fits(block, x):
        return type(block)._attn(block, x)
    attn, bias = block.attn, query_value_bias(block.attn)
    out = cosine_attend(
        project(x, attn.qkv, attn.qkv.weight, bias), bias, attn, attn.cpb_mlp,
        window=block.window_size, shift=block.shift_size, drop=rate(attn.attn_drop), backend=backend, shift_first=True,
    )  # fmt: skip
    return attn.proj_drop(attn.proj(out))


@replaces(
    "window_attention",
    parts={
        "": Part(
            ("torchvision.models.swin_transformer:ShiftedWindowAttentionV2",),
            ("forward", "get_relative_position_bias"),
            parameters=("logit_scale",),
            children=("qkv", "proj", "cpb_mlp"),
        ),
        "qkv": LINEAR,
        "proj": LINEAR,
        **position_mlp("cpb_mlp"),
    },
    sample=lambda attn: window_sample(attn.qkv, attn.num_heads, attn.window_size),
    example=lambda attn, generator: (random_map(generator, ragged(attn.window_size), attn.qkv.in_features),),
    refuses=torchvision_refusal,
    variant=lambda attn: (tuple(map(bool, attn.shift_size)), attn.qkv.bias is None, attn.proj.bias is None),
)
def torchvision_attention(attn: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    bias = attn.qkv.bias
    if bias is not None:
        # there is a bias of the keys, which is never used and has no gradient
        queries, keys, values = bias.chunk(3)
        bias = torch.cat((queries, torch.zeros_like(keys), values))
    drop = attn.attention_dropout if attn.training else 0.0
    out = cosine_attend(
        project(x, attn.qkv, attn.qkv.weight, bias),
        bias,
        attn,
        attn.cpb_mlp,
        window=attn.window_size,
        shift=torchvision_shift(attn, x),
        drop=drop,
        backend=backend,
    )
    return nn.functional.dropout(attn.proj(out), attn.dropout, attn.training)


def huggingface_refusal(layer: nn.Module) -> str | None:
    attention = layer.attention.self
    if layer.shift_size > 0:
        return "Hugging Face adds SwinV2's shift mask twice, -200 where the op and the published model have -100"
    return refuse_window(attention.window_size, attention.dropout)


@replaces(
    "window_attention",
    parts={
        "": Part(
            ("transformers.models.swinv2.modeling_swinv2:Swinv2Layer",),
            ("forward", "get_attn_mask", "maybe_pad"),
            children=("attention", "layernorm_before", "drop_path", "intermediate", "output", "layernorm_after"),
        ),
        "attention": Part(("transformers.models.swinv2.modeling_swinv2:Swinv2Attention",), children=("self", "output")),
        "attention.self": Part(
            ("transformers.models.swinv2.modeling_swinv2:Swinv2SelfAttention",),
            parameters=("logit_scale",),
            children=("continuous_position_bias_mlp", "query", "key", "value", "dropout"),
        ),
        **position_mlp("attention.self.continuous_position_bias_mlp"),
        "attention.self.query": LINEAR,
        "attention.self.key": LINEAR,
        "attention.self.value": LINEAR,
        "attention.self.dropout": DROPOUT,
        "attention.output": Part(("transformers.models.swinv2.modeling_swinv2:Swinv2SelfOutput",), children=("dense", "dropout")),
    },
    sample=lambda layer: window_sample(layer.attention.self.query, layer.attention.self.num_attention_heads, layer.window_size, 3),
    example=lambda layer, generator: huggingface_example(layer.window_size, layer.attention.self.query.in_features, generator),
    refuses=huggingface_refusal,
    variant=lambda layer: layer.attention.self.query.bias is None,
)
def huggingface_layer(
    layer: nn.Module, hidden_states: Tensor, input_dimensions: tuple[int, int], output_attentions: bool | None = False, *, backend: str
) -> tuple[Tensor]:
    if output_attentions:
        return type(layer).forward(layer, hidden_states, input_dimensions, output_attentions)
    attn = layer.attention.self
    maps = hidden_states.unflatten(1, tuple(input_dimensions))
    qkv, bias = project_together(maps, (attn.query, attn.key, attn.value))
    out = cosine_attend(
        qkv, bias, attn, attn.continuous_position_bias_mlp, window=layer.window_size, shift=layer.shift_size, drop=rate(attn.dropout), backend=backend
    )
    attended = layer.attention.output(out.flatten(1, 2), hidden_states)
    hidden_states = hidden_states + layer.drop_path(layer.layernorm_before(attended))
    return (hidden_states + layer.drop_path(layer.layernorm_after(layer.output(layer.intermediate(hidden_states)))),)


@replaces(
    "window_attention",
    parts={
        "": Part(("*.swin_transformer_v2:SwinTransformerBlock",), children=OFFICIAL_BLOCK_CHILDREN),
        "attn": Part(("*.swin_transformer_v2:WindowAttention",), **_ATTENTION),
        **_ATTENTION_PARTS,
    },
    sample=lambda block: window_sample(block.attn.qkv, block.attn.num_heads, block.window_size),
    example=official_example,
    refuses=lambda block: biased_keys(block.attn) or official_refusal(block),
    variant=lambda block: (block.shift_size > 0, block.attn.q_bias is None),
)
def official_block(block: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    attn, bias = block.attn, query_value_bias(block.attn)
    qkv = project(official_map(block, x), attn.qkv, attn.qkv.weight, bias)
    out = cosine_attend(qkv, bias, attn, attn.cpb_mlp, window=block.window_size, shift=block.shift_size, drop=rate(attn.attn_drop), backend=backend)
    x = x + block.drop_path(block.norm1(attn.proj_drop(attn.proj(out)).flatten(1, 2)))
    return x + block.drop_path(block.norm2(block.mlp(x)))
