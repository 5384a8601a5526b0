"""BERT: the encoder of a Transformer with learned positions and sentence types, read by its first word.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vtkernels.models._registry import Info, Variant, register
from vtkernels.models.transformer import EncoderLayer, MultiHeadAttention, check_words, visible_keys


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """A BERT.

    Attributes:
        vocabulary, max_length, types: words, positions and sentence types that have an embedding.
        hidden: hidden channels of the MLPs.
        pooler: whether the first word goes through a last layer with tanh.
    """

    vocabulary: int = 30522
    max_length: int = 512
    types: int = 2
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pooler: bool = True


class BertOutput(NamedTuple):
    """Words [B, N, width], and the first one pooled [B, width] if the model has a pooler."""

    words: Tensor
    pooled: Tensor | None


class Bert(nn.Module):
    """Words [B, N], with their sentence types [B, N] (default 0) and a padding mask that is True where a sequence has ended."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.word_embeddings = nn.Embedding(config.vocabulary, width)
        self.position_embeddings = nn.Embedding(config.max_length, width)
        self.token_type_embeddings = nn.Embedding(config.types, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.heads, config.hidden, config.activation, config.norm_eps, config.dropout, config.attention_dropout)
            for _ in range(config.depth)
        )
        self.pooler = nn.Linear(width, width) if config.pooler else None
        self.initialise()

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, MultiHeadAttention):
                nn.init.normal_(module.in_proj_weight, std=0.02)

    def forward(self, words: Tensor, types: Tensor | None = None, padding: Tensor | None = None) -> BertOutput:
        check_words("Bert", "words", words, self.config.max_length)
        x = self.embed(words, types)
        visible = visible_keys("Bert", words, padding)
        for layer in self.layers:
            x = layer(x, visible)
        return BertOutput(x, None if self.pooler is None else self.pool(x))

    def embed(self, words: Tensor, types: Tensor | None = None) -> Tensor:
        """What the first layer is given."""
        types = torch.zeros_like(words) if types is None else types
        x = self.word_embeddings(words) + self.position_embeddings.weight[: words.shape[1]] + self.token_type_embeddings(types)
        return self.drop(self.norm(x))

    def pool(self, x: Tensor) -> Tensor:
        return self.pooler(x[:, 0]).tanh()

    @classmethod
    def convert_state(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return _from_transformers(state) if any("embeddings.LayerNorm" in name for name in state) else state

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        return ()


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers' checkpoints, of the oldest too. Heads for pretraining stay as they are, and are reported."""
    renames = (
        (r"^bert\.", ""),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"^embeddings\.LayerNorm\.", "norm."),
        (r"^embeddings\.", ""),
        (r"^encoder\.layer\.", "layers."),
        (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
        (r"\.attention\.output\.LayerNorm\.", ".norm1."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.output\.LayerNorm\.", ".norm2."),
        (r"^pooler\.dense\.", "pooler."),
    )
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        for old, new in renames:
            name = re.sub(old, new, name)
        if found := re.fullmatch(r"(layers\.\d+)\.attention\.self\.(query|key|value)\.(weight|bias)", name):
            layer, part, kind = found.groups()
            parts.setdefault(f"{layer}.self_attn.in_proj_{kind}", {})[part] = value
        elif name != "position_ids":
            converted[name] = value
    for name, values in parts.items():
        converted[name] = torch.cat([values[part] for part in ("query", "key", "value")])
    return converted


def _variant(parameters: int, **fields: object) -> Variant:
    return Variant(BertConfig(**fields), Info(parameters=parameters, source="arXiv:1810.04805"))


register(
    Bert,
    {
        "bert_nano": _variant(20_320, vocabulary=32, max_length=32, width=32, depth=2, heads=2, hidden=64),
        "bert_base": _variant(109_482_240),
        "bert_large": _variant(335_141_888, width=1024, depth=24, heads=16, hidden=4096),
    },
)
