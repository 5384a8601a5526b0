"""Patches as tokens, and one width from the first block to the last."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.layers import Block, linear_rates, to_map
from vtkernels.models._base import Config, MapInfo, Model


@dataclass(frozen=True, kw_only=True)
class IsotropicConfig(Config):
    """What such models have in common.

    Attributes:
        width, depth: channels of a token, blocks.
    """

    patch_size: int = 16
    width: int = 512
    depth: int = 8


class Isotropic(Model):
    """A family makes the layers `blocks`, `norm` and `head`, and turns images into tokens in `_embed`."""

    fixed_size = True
    config: IsotropicConfig
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    # layers and parameters that come before the first block
    embedding: ClassVar[tuple[str, ...]] = ("stem",)

    def __init__(self, config: IsotropicConfig):
        super().__init__(config)
        self.check_patches()

    def new_blocks(self, mixer: Callable[[], nn.Module], block: type[Block] = Block, **options: Any) -> nn.ModuleList:
        """`depth` blocks, each around a mixer of its own; `mlp_ratio`, `norm_eps`, `dropout` and `drop_path` are the configuration's."""
        config = self.config
        hidden, rates = int(config.width * config.mlp_ratio), linear_rates(config.drop_path, config.depth)
        return nn.ModuleList(block(config.width, mixer(), hidden, eps=config.norm_eps, drop=config.dropout, drop_path=rate, **options) for rate in rates)

    def check_patches(self) -> None:
        config = self.config
        if config.patch_size < 1 or any(edge % config.patch_size for edge in config.size):
            expected, hint = f"be multiples of patch_size={config.patch_size}", "change img_size or patch_size"
            check.fail(type(config).__name__, "img_size", expected, config.size, hint)

    @property
    def reduction(self) -> int:
        """Pixels that a token spans on each axis."""
        return self.config.patch_size

    @property
    def grid_size(self) -> tuple[int, int]:
        height, width = self.config.size
        return height // self.reduction, width // self.reduction

    @property
    def num_patches(self) -> int:
        rows, columns = self.grid_size
        return rows * columns

    def grid(self, x: Tensor) -> tuple[int, int]:
        return self.grid_size

    def _embed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _step(self, block: nn.Module, x: Tensor) -> Tensor:
        return self.run(block, x)

    def _features(self, x: Tensor) -> Tensor:
        x = self._embed(x)
        for block in self.blocks:
            x = self._step(block, x)
        return self.norm(x)

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features.mean(1))

    def _maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self._embed(x), []
        for index, block in enumerate(self.blocks):
            x = self._step(block, x)
            if index in self._map_blocks:
                maps.append(to_map(x[:, -self.num_patches :], self.grid_size))
        return maps

    @property
    def _map_blocks(self) -> tuple[int, ...]:
        """The last block of each quarter of the depth."""
        depth = self.config.depth
        return tuple(sorted({(depth * quarter + 3) // 4 - 1 for quarter in range(1, 5)}))

    @property
    def maps_info(self) -> list[MapInfo]:
        return [MapInfo(self.config.width, self.reduction)] * len(self._map_blocks)

    def keep_maps_only(self) -> None:
        super().keep_maps_only()
        self.norm = nn.Identity()

    def group_prefixes(self) -> list[tuple[str, ...]]:
        blocks = [(f"blocks.{index}",) for index in range(self.config.depth)]
        return [self.embedding, *blocks, ("norm", "head")]
