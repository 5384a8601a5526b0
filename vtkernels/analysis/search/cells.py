"""NASNet's space of cells: a normal and a reduction cell of blocks, each of which adds two operations on what is there already."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from vtkernels._core.check import fail
from vtkernels.models.nasnet import KINDS, CellPlan, NASNet, NASNetConfig

Operation = tuple[str, str | int]


class Cells(NamedTuple):
    """A candidate: the blocks of both cells."""

    normal: tuple[tuple[Operation, Operation], ...]
    reduction: tuple[tuple[Operation, Operation], ...]


@dataclass(frozen=True)
class CellSpace:
    """All cells of so many blocks and of these kinds of operations."""

    blocks: int = 5
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        if self.blocks < 1:
            fail("CellSpace", "blocks", "be at least 1", self.blocks)
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            fail("CellSpace", "kinds", f"be among {', '.join(KINDS)}", self.kinds)

    def draw(self, generator: random.Random) -> Cells:
        return Cells(*(self._draw_cell(generator) for _ in Cells._fields))

    def mutate(self, cells: Cells, generator: random.Random) -> Cells:
        """One operation of one cell becomes another, or takes another input."""
        which = generator.choice(Cells._fields)
        changed = [list(block) for block in getattr(cells, which)]
        index, side = generator.randrange(self.blocks), generator.randrange(2)
        kind, source = changed[index][side]
        others = [one for one in self.kinds if one != kind]
        places = [one for one in sources(index) if one != source]
        if others and generator.random() < 0.5:
            kind = generator.choice(others)
        else:
            source = generator.choice(places)
        changed[index][side] = (kind, source)
        return cells._replace(**{which: tuple(tuple(block) for block in changed)})

    def _draw_cell(self, generator: random.Random) -> tuple[tuple[Operation, Operation], ...]:
        def operation(index: int) -> Operation:
            return generator.choice(self.kinds), generator.choice(sources(index))

        return tuple((operation(index), operation(index)) for index in range(self.blocks))


def sources(block: int) -> list[str | int]:
    """What a block can read."""
    return ["cur", "prev", *range(block)]


def plan(blocks: tuple[tuple[Operation, Operation], ...]) -> CellPlan:
    """The cell of these blocks; it puts out those that no other block reads."""
    used = {source for block in blocks for _, source in block}
    return CellPlan(blocks, tuple(index for index in range(len(blocks)) if index not in used))


def build(cells: Cells, *, num_classes: int, size: int, channels: int = 3, filters: int = 8, repeats: int = 1) -> NASNet:
    """A small network of these cells."""
    return NASNet(
        NASNetConfig(
            num_classes=num_classes, img_size=size, in_channels=channels, filters=filters, repeats=repeats, stem="cifar", stem_channels=2 * filters,
            skip_reduction_input=True, normal=plan(cells.normal), reduction=plan(cells.reduction),
        )
    )  # fmt: skip


def describe(cells: Cells) -> str:
    """The cells as text, a line each."""
    lines = []
    for name, blocks in zip(Cells._fields, cells, strict=True):
        lines.append(f"{name}: " + "; ".join(" + ".join(f"{kind}({_named(source)})" for kind, source in block) for block in blocks))
    return "\n".join(lines)


def _named(source: str | int) -> str:
    return source if isinstance(source, str) else f"block {source}"


__all__ = ["CellSpace", "Cells", "build", "describe", "plan", "sources"]
