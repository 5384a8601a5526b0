"""The Transformer of Vaswani et al., "Attention Is All You Need", 2017: sequences of words to sequences of words, post-norm."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Mlp, sin_cos_positions
from vtkernels.models._registry import Info, Variant, register


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """An encoder-decoder.

    Attributes:
        vocabulary: words, shared by source, target and output.
        depth, decoder_depth: layers of the encoder and of the decoder.
        hidden: hidden channels of the MLPs.
        max_length: words of the longest sequence; its positions are computed, not learned.
        final_norms: whether each stack ends in a normalisation, as in torch.nn.Transformer; the paper has none.
        attention_bias: whether the projections of attention have biases.
    """

    vocabulary: int = 37000
    width: int = 512
    depth: int = 6
    decoder_depth: int = 6
    heads: int = 8
    hidden: int = 2048
    max_length: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation: str = "relu"
    norm_eps: float = 1e-5
    final_norms: bool = False
    attention_bias: bool = True


class MultiHeadAttention(nn.Module):
    """Queries [B, N, C] attend to a memory [B, M, C], or to themselves. Parameters are named as in torch.nn.MultiheadAttention.

    `visible` [B, 1, N or 1, M] is False where a key may not be seen.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, attn_drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            check.fail("MultiHeadAttention", "dim", f"be a multiple of num_heads={num_heads}", dim)
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim)) if bias else None
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def heads(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [B, h, N or M, D]."""
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, x.shape[-1]
        if memory is None:
            projected = F.linear(x, weight, bias).chunk(3, -1)
        else:
            query_bias, memory_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
            projected = (F.linear(x, weight[:dim], query_bias), *F.linear(memory, weight[dim:], memory_bias).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected)
        return q, k, v

    def forward(self, x: Tensor, memory: Tensor | None = None, visible: Tensor | None = None, causal: bool = False) -> Tensor:
        q, k, v = self.heads(x, memory)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, dropout_p=dropout)
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def attention_weights(self, x: Tensor, memory: Tensor | None = None, visible: Tensor | None = None, causal: bool = False) -> Tensor:
        """[B, h, N, M]: what `forward` weighs the values with."""
        q, k, _ = self.heads(x, memory)
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        if causal:
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        return (scores if visible is None else scores.masked_fill(~visible, -torch.inf)).softmax(-1)


class EncoderLayer(nn.Module):
    """Self-attention, then an MLP, each normalised after its residual."""

    def __init__(self, dim: int, heads: int, hidden: int, act: str, eps: float, drop: float, attn_drop: float, attn_bias: bool = True):
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, heads, attn_bias, attn_drop)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden, act=act)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.drop(self.self_attn(x, visible=visible)))
        return self.norm2(x + self.drop(self.mlp(x)))


class DecoderLayer(EncoderLayer):
    """Attention to the words so far, then to the encoder's output, then an MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, act: str, eps: float, drop: float, attn_drop: float, attn_bias: bool = True):
        super().__init__(dim, heads, hidden, act, eps, drop, attn_drop, attn_bias)
        self.multihead_attn = MultiHeadAttention(dim, heads, attn_bias, attn_drop)
        self.norm3 = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor | None = None, memory_visible: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.drop(self.self_attn(x, visible=visible, causal=visible is None)))
        x = self.norm2(x + self.drop(self.multihead_attn(x, memory, memory_visible)))
        return self.norm3(x + self.drop(self.mlp(x)))


class Stack(nn.Module):
    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, *context: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, *context)
        return self.norm(x)


class Transformer(nn.Module):
    """Source and target words [B, S] and [B, T] -> logits [B, T, vocabulary] of the word after each of the target's.

    Padding masks are True where a sequence has ended. One matrix embeds source and target, and classifies the output.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.register_buffer("positions", sin_cos_positions(config.max_length, width), persistent=False)
        self.register_load_state_dict_post_hook(_restore_positions)
        self.drop = nn.Dropout(config.dropout)
        sizes = (width, config.heads, config.hidden, config.activation, config.norm_eps)
        drops = (config.dropout, config.attention_dropout, config.attention_bias)
        self.encoder = Stack((EncoderLayer(*sizes, *drops) for _ in range(config.depth)), self.new_norm())
        self.decoder = Stack((DecoderLayer(*sizes, *drops) for _ in range(config.decoder_depth)), self.new_norm())
        self.initialise()

    def new_norm(self) -> nn.Module:
        return nn.LayerNorm(self.config.width, eps=self.config.norm_eps) if self.config.final_norms else nn.Identity()

    def initialise(self) -> None:
        # times sqrt(width), the embeddings have unit variance, as the positions they are added to nearly have
        nn.init.normal_(self.embedding.weight, std=self.config.width**-0.5)
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                for projection in module.in_proj_weight.chunk(3):
                    nn.init.xavier_uniform_(projection)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, source: Tensor, target: Tensor, source_padding: Tensor | None = None, target_padding: Tensor | None = None) -> Tensor:
        memory = self.encode(source, source_padding)
        return self.logits(self.decode(target, memory, source_padding, target_padding))

    def encode(self, source: Tensor, padding: Tensor | None = None) -> Tensor:
        """[B, S] -> [B, S, width]"""
        return self.encoder(self.embed(source, "source"), visible_keys("Transformer", source, padding))

    def decode(self, target: Tensor, memory: Tensor, source_padding: Tensor | None = None, target_padding: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, width]; no word sees those after it."""
        visible = visible_keys("Transformer", target, target_padding)
        if visible is not None:
            length = target.shape[1]
            visible = visible & torch.ones(length, length, dtype=torch.bool, device=target.device).tril()
        return self.decoder(self.embed(target, "target"), memory, visible, visible_keys("Transformer", memory, source_padding))

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight)

    def embed(self, words: Tensor, subject: str) -> Tensor:
        check_words("Transformer", subject, words, self.config.max_length)
        return self.drop(self.embedding(words) * math.sqrt(self.config.width) + self.positions[:, : words.shape[1]])

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """torch.nn.Transformer's names."""
        return {name.replace(".linear1.", ".mlp.fc1.").replace(".linear2.", ".mlp.fc2."): value for name, value in state.items()}

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        return ()


def _restore_positions(model: Transformer, _: object) -> None:
    """No checkpoint holds the positions, and a model made on the meta device has them nowhere."""
    model.positions = sin_cos_positions(model.config.max_length, model.config.width).to(model.embedding.weight)


def visible_keys(model: str, like: Tensor, padding: Tensor | None) -> Tensor | None:
    """[B, 1, 1, M] from a padding mask [B, M] of the sequences `like`."""
    if padding is None:
        return None
    if padding.dtype != torch.bool or padding.shape != like.shape[:2]:
        expected, got = f"be a bool tensor of shape {list(like.shape[:2])}", f"{padding.dtype} of shape {list(padding.shape)}"
        check.fail(model, "padding", expected, got, "it is True where a sequence has ended")
    return ~padding[:, None, None, :]


def check_words(model: str, subject: str, words: Tensor, max_length: int) -> None:
    if words.dim() != 2 or words.dtype not in (torch.int64, torch.int32):
        check.fail(model, subject, "be int64 or int32 word numbers [B, N]", f"{words.dtype} of shape {list(words.shape)}")
    if words.shape[1] > max_length:
        check.fail(model, subject, f"have {max_length} words at most", words.shape[1], f"create_model(..., max_length={words.shape[1]})")


def _variant(parameters: int, **fields: object) -> Variant:
    return Variant(TransformerConfig(**fields), Info(parameters=parameters, source="arXiv:1706.03762"))


register(
    Transformer,
    {
        "transformer_nano": _variant(35_360, vocabulary=32, width=32, depth=1, decoder_depth=2, heads=2, hidden=64, max_length=32, final_norms=True),
        "transformer_base": _variant(63_082_496),
        "transformer_big": _variant(214_245_376, width=1024, heads=16, hidden=4096, dropout=0.3),
    },
)
