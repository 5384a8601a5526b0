"""BERT on images without text: the grey levels of an image's cells are its words, of which there are as many as levels and one more.

The encoder is that of `vtkernels.models.bert`. What it is trained on here only shows that it learns; nobody published such a model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import carry_positions
from vtkernels.models._base import Config, Model
from vtkernels.models._registry import Info, Variant, register
from vtkernels.models.bert import Bert, BertConfig

POSITIONS = "bert.position_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class ImageBertConfig(Config):
    """A BERT that reads images. `drop_path` means nothing to it.

    Attributes:
        patch_size: edge of a cell, whose mean grey becomes a word.
        levels: words, from two deviations below the mean of the pixels to two above it.
        width, depth, heads, hidden, dropout: as in `BertConfig`.
    """

    patch_size: int = 4
    levels: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    dropout: float = 0.1


class ImageBert(Model):
    """Images, normalised, into words, and these into classes by what BERT makes of the first word, which stands for the whole."""

    fixed_size = True
    prefix_tokens = 1
    config: ImageBertConfig

    def __init__(self, config: ImageBertConfig):
        super().__init__(config)
        _check(config)
        rows, columns = self.grid_size
        self.bert = Bert(
            BertConfig(
                vocabulary=config.levels + 1,
                max_length=1 + rows * columns,
                types=1,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                hidden=config.hidden,
                dropout=config.dropout,
                attention_dropout=config.dropout,
            )
        )
        self.head = self.new_classifier(config.width)
        if config.num_classes:
            self.initialise_classifier(self.head)

    @property
    def grid_size(self) -> tuple[int, int]:
        height, width = self.config.size
        return height // self.config.patch_size, width // self.config.patch_size

    def words(self, x: Tensor) -> Tensor:
        """[B, 1 + N]: the word for the whole, then the levels of the cells, row after row."""
        config = self.config
        cells = F.avg_pool2d(x.float().mean(1, keepdim=True), config.patch_size).flatten(1)
        inner = torch.linspace(-2, 2, config.levels - 1, device=x.device)
        levels = torch.bucketize(cells, inner)
        return F.pad(levels, (1, 0), value=config.levels)

    def _features(self, x: Tensor) -> Tensor:
        x = self.bert.embed(self.words(x))
        for layer in self.bert.layers:
            x = self.run(layer, x)
        return x

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(self.bert.pool(features))

    def group_prefixes(self) -> list[tuple[str, ...]]:
        embedding = ("bert.word_embeddings", "bert.position_embeddings", "bert.token_type_embeddings", "bert.norm")
        layers = [(f"bert.layers.{index}",) for index in range(self.config.depth)]
        return [embedding, *layers, ("bert.pooler", "head")]

    def grid(self, x: Tensor) -> tuple[int, int]:
        return self.grid_size

    def resize_state(self, state: dict[str, Tensor]) -> Iterable[str]:
        if POSITIONS not in state:
            return []
        # positions have no batch here
        state[POSITIONS] = state[POSITIONS][None]
        resized = carry_positions(state, POSITIONS, self.grid_size, prefix=1)
        state[POSITIONS] = state[POSITIONS][0]
        return resized


def _check(config: ImageBertConfig) -> None:
    if config.patch_size < 1 or any(edge % config.patch_size for edge in config.size):
        check.fail("ImageBertConfig", "img_size", f"be multiples of patch_size={config.patch_size}", config.size, "change img_size or patch_size")
    if config.levels < 2:
        check.fail("ImageBertConfig", "levels", "be 2 or more", config.levels)


def _variant(parameters: int, classes: int = 1000, source: str = "arXiv:1810.04805", **fields: object) -> Variant:
    return Variant(ImageBertConfig(**fields), Info(parameters=parameters, classes=classes, source=source))


TESTS = "for tests and demonstrations"

register(
    ImageBert,
    {
        "bert_grey_nano_patch4_32": _variant(172_618, 10, TESTS, img_size=32, levels=64, width=96, depth=2, heads=4, hidden=192, dropout=0.0),
        "bert_grey_base_patch16_224": _variant(86_765_032, patch_size=16, levels=256),
    },
)
