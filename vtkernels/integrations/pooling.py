"""Attention pooling: a learned query over all tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels.integrations.cait import tokens
from vtkernels.integrations.rules import LINEAR, Part, replaces
from vtkernels.ops.class_attention import pooled_attention


def pooled_sample(weight: Tensor, heads: int) -> dict[str, Any]:
    dim = weight.shape[1] // heads
    return {"q": weight.new_empty(1, heads, 1, dim), "k": weight.new_empty(1, heads, 2, dim), "v": weight.new_empty(1, heads, 2, dim)}


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] -> [B, h, N, D]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@replaces(
    "pooled_attention",
    parts={
        "": Part(
            ("timm.layers.attention_pool:AttentionPoolLatent",),
            parameters=("latent",),
            optional=("pos_embed",),
            children=None,
        ),
        "kv": LINEAR,
    },
    sample=lambda pool: pooled_sample(pool.kv.weight, pool.num_heads),
    example=lambda pool, generator: timm_example(pool, generator),
    variant=lambda pool: (pool.pool, pool.pos_embed is None, pool.mlp is None, pool.fused_attn, type(pool.q), type(pool.q_norm)),
)
def timm_latent_pool(pool: nn.Module, x: Tensor, attn_mask: Tensor | None = None, *, backend: str) -> Tensor:
    if attn_mask is not None:
        return type(pool).forward(pool, x, attn_mask)
    if pool.pos_embed is not None:
        x = x + pool.pos_embed[None].to(x.dtype)
    keys, values = (split_heads(half, pool.num_heads) for half in pool.kv(x).chunk(2, -1))
    queries, keys = pool.q_norm(split_heads(pool.q(pool.latent.expand(x.shape[0], -1, -1)), pool.num_heads)), pool.k_norm(keys)
    # norms may come back in another precision than the values
    x = pooled_attention(queries.to(values.dtype), keys.to(values.dtype), values, scale=pool.scale, backend=backend)
    x = pool.proj_drop(pool.proj(x.transpose(1, 2).flatten(2)))
    if pool.mlp is not None:
        x = x + pool.mlp(pool.norm(x))
    return x[:, 0] if pool.pool == "token" else x.mean(1) if pool.pool == "avg" else x


def timm_example(pool: nn.Module, generator: torch.Generator) -> tuple[Any, ...]:
    count = 11 if pool.pos_embed is None else pool.pos_embed.shape[0]
    return (torch.randn(2, count, pool.kv.in_features, generator=generator, dtype=torch.float64),)


def siglip_refusal(head: nn.Module) -> str | None:
    attention = head.attention
    if attention.in_proj_bias is None or attention.bias_k is not None or attention.add_zero_attn or not attention.batch_first:
        return "its MultiheadAttention is not of the usual form"
    return "its MultiheadAttention drops weights" if attention.dropout else None


@replaces(
    "pooled_attention",
    parts={
        "": Part(
            ("transformers.models.siglip.modeling_siglip:SiglipMultiheadAttentionPoolingHead",),
            parameters=("probe",),
            children=("attention", "layernorm", "mlp"),
        ),
        "attention": Part(
            ("torch.nn.modules.activation:MultiheadAttention",),
            parameters=("in_proj_weight",),
            optional=("in_proj_bias",),
            children=("out_proj",),
        ),
        "attention.out_proj": Part(("torch.nn.modules.linear:NonDynamicallyQuantizableLinear",), parameters=("weight",), optional=("bias",)),
    },
    sample=lambda head: pooled_sample(head.attention.in_proj_weight, head.attention.num_heads),
    example=lambda head, generator: tokens(generator, head.attention.embed_dim),
    refuses=siglip_refusal,
)
def siglip_head(head: nn.Module, hidden_state: Tensor, *, backend: str) -> Tensor:
    attn = head.attention
    weights, biases = attn.in_proj_weight.split((attn.embed_dim, 2 * attn.embed_dim)), attn.in_proj_bias.split((attn.embed_dim, 2 * attn.embed_dim))
    probe = F.linear(head.probe, weights[0], biases[0]).expand(hidden_state.shape[0], -1, -1)
    keys, values = F.linear(hidden_state, weights[1], biases[1]).chunk(2, -1)
    pooled = pooled_attention(*(split_heads(x, attn.num_heads) for x in (probe, keys, values)), backend=backend)
    residual = attn.out_proj(pooled.transpose(1, 2).flatten(2))
    return (residual + head.mlp(head.layernorm(residual)))[:, 0]
