"""Swin's blocks: the whole attention half runs on the map as it is, without shifted, padded or partitioned copies."""

from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.layers import padded, project_together, rate
from vtkernels.integrations.rules import DROPOUT, LINEAR, SOFTMAX, Part, replaces
from vtkernels.ops.window_attention import window_attention

_TABLE = "relative_position_bias_table"


def window_sample(projection: nn.Linear, heads: int, window: Any, projections: int = 1) -> dict[str, Any]:
    """Arguments of the op on one window."""
    window = pair(window)
    return {"qkv": projection.weight.new_empty(1, *window, projections * projection.out_features), "num_heads": heads, "window_size": window}


def pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def refuse_window(window: Any, dropout: nn.Module | float = 0.0) -> str | None:
    """What window_attention does not take."""
    if not all(2 <= edge <= 32 for edge in pair(window)):
        return f"its window is {pair(window)}; window_attention takes 2 to 32 tokens an edge"
    p = dropout if isinstance(dropout, float) else getattr(dropout, "p", 0.0)
    return f"its attention dropout is {p}; window_attention takes less than 1" if p >= 1 else None


def random_map(generator: torch.Generator, size: tuple[int, int], channels: int) -> Tensor:
    return torch.randn(2, *size, channels, generator=generator, dtype=torch.float64)


def ragged(window: Any) -> tuple[int, int]:
    """A map with two rows and three columns of windows, none whole at the end."""
    rows, columns = pair(window)
    return rows + 1, 3 * columns - 1


def mask_refusal(block: nn.Module) -> str | None:
    """timm's blocks, either generation."""
    if any(block.shift_size) and block.attn_mask is None and not getattr(block, "dynamic_mask", False):
        return "it shifts its windows, but has no mask"
    if pair(block.attn.window_size) != pair(block.window_size):
        return f"its windows are {block.window_size}, those of its attention {block.attn.window_size}"
    return refuse_window(block.window_size, block.attn.attn_drop)


def mask_fits(block: nn.Module, x: Tensor) -> bool:
    """timm's mask is made for one size of map, unless it is dynamic; at another, its own code is to say what happens."""
    if getattr(block, "dynamic_mask", False) or not any(block.shift_size):
        return True
    wanted, given = (tuple(-(-edge // window) for edge, window in zip(size, block.window_size, strict=True)) for size in (block.input_resolution, x.shape[1:3]))
    return wanted == given


def timm_example(block: nn.Module, generator: torch.Generator) -> tuple[Any, ...]:
    fixed = any(block.shift_size) and not getattr(block, "dynamic_mask", False)
    size = block.input_resolution if fixed else ragged(block.window_size)
    return (random_map(generator, tuple(size), block.attn.qkv.in_features),)


def attend(attn: nn.Module, x: Tensor, window: Any, shift: Any, drop: float, scale: float | None, backend: str, **options: Any) -> Tensor:
    """Modules qkv and proj around the op, [B, H, W, C] -> [B, H, W, C]; parameters are named alike in all libraries but one."""
    out = window_attention(
        attn.qkv(x),
        attn.relative_position_bias_table,
        num_heads=attn.num_heads,
        window_size=pair(window),
        shift_size=pair(shift),
        scale=scale,
        qkv_bias=attn.qkv.bias if padded(x, pair(window)) else None,
        dropout_p=drop,
        backend=backend,
        **options,
    )
    return attn.proj(out)


@replaces(
    "window_attention",
    method="_attn",
    parts={
        "": Part(("timm.models.swin_transformer:SwinTransformerBlock",), ("forward", "_attn", "get_attn_mask"), children=None),
        "attn": Part(
            ("timm.models.swin_transformer:WindowAttention",),
            ("forward", "_get_rel_pos_bias"),
            parameters=(_TABLE,),
            children=("qkv", "attn_drop", "proj", "proj_drop", "softmax"),
        ),
        "attn.qkv": LINEAR,
        "attn.attn_drop": DROPOUT,
        "attn.proj": LINEAR,
        "attn.proj_drop": DROPOUT,
        "attn.softmax": SOFTMAX,
    },
    sample=lambda block: window_sample(block.attn.qkv, block.attn.num_heads, block.window_size),
    example=timm_example,
    refuses=mask_refusal,
    variant=lambda block: (tuple(map(bool, block.shift_size)), block.attn.qkv.bias is None, block.attn.fused_attn),
)
def timm_block(block: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    if not mask_fits(block, x):
        return type(block)._attn(block, x)
    attn = block.attn
    return attn.proj_drop(attend(attn, x, block.window_size, block.shift_size, rate(attn.attn_drop), attn.scale, backend, shift_first=True))


def torchvision_shift(attn: nn.Module, x: Tensor) -> tuple[int, int]:
    """An axis on which the map is no larger than the window is not shifted."""
    return tuple(0 if edge <= window else shift for edge, window, shift in zip(x.shape[1:3], attn.window_size, attn.shift_size, strict=True))


def torchvision_refusal(attn: nn.Module) -> str | None:
    return refuse_window(attn.window_size, float(attn.attention_dropout))


@replaces(
    "window_attention",
    parts={
        "": Part(
            ("torchvision.models.swin_transformer:ShiftedWindowAttention",),
            ("forward", "get_relative_position_bias"),
            parameters=(_TABLE,),
            children=("qkv", "proj"),
        ),
        "qkv": LINEAR,
        "proj": LINEAR,
    },
    sample=lambda attn: window_sample(attn.qkv, attn.num_heads, attn.window_size),
    example=lambda attn, generator: (random_map(generator, ragged(attn.window_size), attn.qkv.in_features),),
    refuses=lambda attn: "its type is another generation's" if hasattr(attn, "logit_scale") else torchvision_refusal(attn),
    variant=lambda attn: (tuple(map(bool, attn.shift_size)), attn.qkv.bias is None, attn.proj.bias is None),
)
def torchvision_attention(attn: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    drop = attn.attention_dropout if attn.training else 0.0
    out = attend(attn, x, attn.window_size, torchvision_shift(attn, x), drop, None, backend)
    return nn.functional.dropout(out, attn.dropout, attn.training)


def huggingface_refusal(layer: nn.Module) -> str | None:
    attention = layer.attention
    if attention.config._attn_implementation != "sdpa":
        return f"its attention is {attention.config._attn_implementation!r}, which returns the attention matrix; load the model with attn_implementation='sdpa'"
    return refuse_window(attention.relative_position_bias.window_size, float(attention.attention_dropout))


@replaces(
    "window_attention",
    parts={
        "": Part(
            ("transformers.models.swin.modeling_swin:SwinLayer",),
            ("forward", "set_shift_and_window_size", "get_attn_mask", "maybe_pad", "cyclic_shift"),
            children=("attention", "layernorm_before", "layernorm_after", "mlp", "dropout", "drop_path"),
        ),
        "attention": Part(
            ("transformers.models.swin.modeling_swin:SwinAttention",),
            children=("q_proj", "k_proj", "v_proj", "o_proj", "relative_position_bias"),
        ),
        "attention.q_proj": LINEAR,
        "attention.k_proj": LINEAR,
        "attention.v_proj": LINEAR,
        "attention.o_proj": LINEAR,
        "attention.relative_position_bias": Part(("transformers.models.swin.modeling_swin:SwinRelativePositionBias",), parameters=(_TABLE,)),
    },
    sample=lambda layer: window_sample(layer.attention.q_proj, layer.attention.num_attention_heads, layer.attention.relative_position_bias.window_size, 3),
    example=lambda layer, generator: huggingface_example(layer.window_size, layer.attention.q_proj.in_features, generator),
    refuses=huggingface_refusal,
    variant=lambda layer: (layer.shift_size > 0, layer.attention.q_proj.bias is None),
)
def huggingface_layer(
    layer: nn.Module, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, *, backend: str, **options: Any
) -> tuple[Tensor, None]:
    attn = layer.attention
    if not always_partition:
        layer.set_shift_and_window_size(input_dimensions)
    window = attn.relative_position_bias.window_size
    # a map smaller than the window has shrunk the window, but not the table
    wants_matrix = options.get("output_attentions") or attn.config.output_attentions
    if wants_matrix or pair(layer.window_size) != window:
        return type(layer).forward(layer, hidden_states, input_dimensions, always_partition, **options)
    maps = layer.layernorm_before(hidden_states).unflatten(1, tuple(input_dimensions))
    qkv, bias = project_together(maps, (attn.q_proj, attn.k_proj, attn.v_proj))
    out = window_attention(
        qkv,
        attn.relative_position_bias.relative_position_bias_table,
        num_heads=attn.num_attention_heads,
        window_size=window,
        shift_size=layer.shift_size,
        scale=attn.scaling,
        qkv_bias=bias if padded(maps, window) else None,
        dropout_p=attn.attention_dropout if attn.training else 0.0,
        backend=backend,
    )
    hidden_states = hidden_states + layer.drop_path(layer.dropout(attn.o_proj(out)).flatten(1, 2))
    return hidden_states + layer.dropout(layer.mlp(layer.layernorm_after(hidden_states))), None


def huggingface_example(window: int, channels: int, generator: torch.Generator) -> tuple[Any, ...]:
    size = ragged(window)
    return random_map(generator, size, channels).flatten(1, 2), size


def official_refusal(block: nn.Module) -> str | None:
    if getattr(block, "fused_window_process", False):
        return "fused_window_process is on"
    if block.shift_size > 0 and block.attn_mask is None:
        return "it shifts its windows, but has no mask"
    return refuse_window(block.window_size, block.attn.attn_drop)


def official_example(block: nn.Module, generator: torch.Generator) -> tuple[Any, ...]:
    return (random_map(generator, pair(block.input_resolution), block.attn.qkv.in_features).flatten(1, 2),)


def official_map(block: nn.Module, x: Tensor) -> Tensor:
    """[B, H * W, C] -> [B, H, W, C]; a wrong number of tokens fails as in the official code, with an AssertionError."""
    height, width = block.input_resolution
    assert x.shape[1] == height * width, "input feature has wrong size"
    return x.unflatten(1, (height, width))


OFFICIAL_BLOCK_CHILDREN = ("norm1", "attn", "drop_path", "norm2", "mlp")


@replaces(
    "window_attention",
    parts={
        "": Part(("*.swin_transformer:SwinTransformerBlock",), children=OFFICIAL_BLOCK_CHILDREN),
        "attn": Part(
            ("*.swin_transformer:WindowAttention",),
            parameters=(_TABLE,),
            children=("qkv", "attn_drop", "proj", "proj_drop", "softmax"),
        ),
        "attn.qkv": LINEAR,
        "attn.attn_drop": DROPOUT,
        "attn.proj": LINEAR,
        "attn.proj_drop": DROPOUT,
        "attn.softmax": SOFTMAX,
    },
    sample=lambda block: window_sample(block.attn.qkv, block.attn.num_heads, block.window_size),
    example=official_example,
    refuses=official_refusal,
    variant=lambda block: (block.shift_size > 0, block.attn.qkv.bias is None),
)
def official_block(block: nn.Module, x: Tensor, *, backend: str) -> Tensor:
    attn = block.attn
    out = attend(attn, official_map(block, block.norm1(x)), block.window_size, block.shift_size, rate(attn.attn_drop), attn.scale, backend)
    x = x + block.drop_path(attn.proj_drop(out).flatten(1, 2))
    return x + block.drop_path(block.mlp(block.norm2(x)))
