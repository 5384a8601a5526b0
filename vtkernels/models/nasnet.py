"""NASNet-A: networks stacked from two cells that a search on small images found.

Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition", 2017.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.layers import Conv2dSame, DropPath, SeparableConv2d
from vtkernels.models._base import Config, MapInfo
from vtkernels.models._conv_net import ConvNet
from vtkernels.models._registry import Info, Variant, register

STEMS = ("imagenet", "cifar")
EPS = 1e-3

Source = str | int


class CellPlan(NamedTuple):
    """What a cell computes. Each of `blocks` adds two operations, each (kind, source): the current ("cur") or previous ("prev") cell's
    output, or an earlier block's by its number. Kinds are sep3, sep5, sep7, avg, max and id. The cell puts out all of `outputs`, side by side.
    """

    blocks: tuple[tuple[tuple[str, Source], tuple[str, Source]], ...]
    outputs: tuple[Source, ...]


NORMAL = CellPlan(
    blocks=(
        (("sep5", "cur"), ("sep3", "prev")),
        (("sep5", "prev"), ("sep3", "prev")),
        (("avg", "cur"), ("id", "prev")),
        (("avg", "prev"), ("avg", "prev")),
        (("sep3", "cur"), ("id", "cur")),
    ),
    outputs=("prev", 0, 1, 2, 3, 4),
)
REDUCTION = CellPlan(
    blocks=(
        (("sep5", "cur"), ("sep7", "prev")),
        (("max", "cur"), ("sep7", "prev")),
        (("avg", "cur"), ("sep5", "prev")),
        (("id", 1), ("avg", 0)),
        (("sep3", 0), ("max", "cur")),
    ),
    outputs=(1, 2, 3, 4),
)
KINDS = ("sep3", "sep5", "sep7", "avg", "max", "id")


@dataclass(frozen=True, kw_only=True)
class NASNetConfig(Config):
    """A NASNet-A.

    Attributes:
        filters: channels of each operation in the first cells; they double at each reduction, and a normal cell puts out six times as many.
        repeats: normal cells of each of the three stages.
        stem: "imagenet", a strided convolution and two reduction cells, or "cifar", a convolution.
        stem_channels: of that convolution.
        skip_reduction_input: whether the previous cell of the one after a reduction is, as for the reduction, the last but one before it,
            instead of the last.
        drop_path: rate at which the last cell leaves out each operation in training; it grows with the cell. The paper also lets it grow
            from 0 with the training step.
        normal, reduction: the cells; by default those that were found on CIFAR-10.
    """

    filters: int = 44
    repeats: int = 4
    stem: str = "imagenet"
    stem_channels: int = 32
    skip_reduction_input: bool = False
    normal: CellPlan = NORMAL
    reduction: CellPlan = REDUCTION


class ActConvBn(nn.Module):
    """ReLU, a pointwise convolution, batch normalisation."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(F.relu(x)))


class TwoSeparables(nn.Module):
    """Twice ReLU, separable convolution and batch normalisation; the first has the stride and the change of channels, if any."""

    def __init__(self, dim: int, out: int, kernel_size: int, stride: int):
        super().__init__()
        self.separable_1 = SeparableConv2d(dim, out, kernel_size, stride, Conv2dSame)
        self.bn_sep_1 = nn.BatchNorm2d(out, EPS)
        self.separable_2 = SeparableConv2d(out, out, kernel_size, 1, Conv2dSame)
        self.bn_sep_2 = nn.BatchNorm2d(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_sep_1(self.separable_1(F.relu(x)))
        return self.bn_sep_2(self.separable_2(F.relu(x)))


class Pool(nn.Module):
    """The mean or maximum over 3 x 3 pixels, of those that exist at the border."""

    def __init__(self, kind: str, stride: int):
        super().__init__()
        self.kind, self.stride = kind, stride

    def forward(self, x: Tensor) -> Tensor:
        # at every second pixel of an even edge, TensorFlow's padding is on the far side alone: there the last window hangs over
        margins = tuple(edge % 2 if self.stride == 2 else 1 for edge in x.shape[2:])
        if self.kind == "max":
            return F.max_pool2d(x, 3, self.stride, margins, ceil_mode=True)
        return F.avg_pool2d(x, 3, self.stride, margins, ceil_mode=True, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"{self.kind!r}, stride={self.stride}"


class Halving(nn.Module):
    """A strided pointwise convolution."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, :, ::2, ::2])


class Cell(nn.Module):
    """A plan's operations on the outputs of the two cells before, which are first squeezed to `filters` channels.

    `previous` says how: "same" resolution; "twice", halved by two paths of which the second looks one pixel further down and right; or
    "raw", taken as it is by operations that bring it to `filters` channels themselves.
    """

    def __init__(self, filters: int, prev_channels: int, channels: int, previous: str, reduction: bool, drop_path: float = 0.0, plan: CellPlan | None = None):
        super().__init__()
        self.previous = previous
        self.blocks, self.outputs = plan or (REDUCTION if reduction else NORMAL)
        if previous == "same":
            self.conv_prev_1x1 = ActConvBn(prev_channels, filters)
        elif previous == "twice":
            self.path_1 = Halving(prev_channels, filters // 2)
            self.path_2 = Halving(prev_channels, filters // 2)
            self.final_path_bn = nn.BatchNorm2d(filters, EPS)
        self.conv_1x1 = ActConvBn(channels, filters)
        for index, pair in enumerate(self.blocks):
            for side, (kind, source) in zip(("left", "right"), pair, strict=True):
                stride = 2 if reduction and source in ("cur", "prev") else 1
                if kind.startswith("sep"):
                    dim = prev_channels if source == "prev" and previous == "raw" else filters
                    operation: nn.Module = TwoSeparables(dim, filters, int(kind.removeprefix("sep")), stride)
                elif kind == "id":
                    operation = nn.Identity() if stride == 1 else Halving(filters, filters)
                else:
                    operation = Pool(kind, stride)
                self.add_module(f"comb_iter_{index}_{side}", operation)
        self.drop_path = DropPath(drop_path)

    @property
    def channels(self) -> int:
        return len(self.outputs) * self.conv_1x1.bn.num_features

    def _squeeze(self, prev: Tensor) -> Tensor:
        if self.previous == "raw":
            return prev
        if self.previous == "same":
            return self.conv_prev_1x1(prev)
        prev = F.relu(prev)
        return self.final_path_bn(torch.cat((self.path_1(prev), self.path_2(F.pad(prev, (-1, 1, -1, 1)))), 1))

    def _operate(self, index: int, side: str, x: Tensor) -> Tensor:
        operation = self.get_submodule(f"comb_iter_{index}_{side}")
        return x if isinstance(operation, nn.Identity) else self.drop_path(operation(x))

    def forward(self, x: Tensor, prev: Tensor) -> Tensor:
        known: dict[str | int, Tensor] = {"prev": self._squeeze(prev), "cur": self.conv_1x1(x)}
        for index, ((_, left), (_, right)) in enumerate(self.blocks):
            known[index] = self._operate(index, "left", known[left]) + self._operate(index, "right", known[right])
        return torch.cat([known[source] for source in self.outputs], 1)


class Conv0(nn.Module):
    """The convolution of the stem."""

    def __init__(self, dim: int, out: int, strided: bool):
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 3, 2, bias=False) if strided else nn.Conv2d(dim, out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class NASNet(ConvNet):
    classifiers = ("last_linear",)

    def __init__(self, config: NASNetConfig):
        super().__init__(config)
        _check(config)
        strided = config.stem == "imagenet"
        self.conv0 = Conv0(config.in_channels, config.stem_channels, strided)
        prev = current = MapInfo(config.stem_channels, 2 if strided else 1)
        plan = self._plan()
        self.outputs: dict[str, MapInfo] = {}
        for index, (name, filters, reduces) in enumerate(plan):
            previous = "raw" if name == "cell_stem_0" else "same" if prev.reduction == current.reduction else "twice"
            structure = config.reduction if reduces else config.normal
            cell = Cell(filters, prev.channels, current.channels, previous, reduces, config.drop_path * (index + 1) / len(plan), structure)
            self.add_module(name, cell)
            self.outputs[name] = MapInfo(cell.channels, current.reduction * (2 if reduces else 1))
            prev, current = prev if self._passes_previous_on(name) else current, self.outputs[name]
        self.last_linear = self.new_classifier(current.channels)

    def _plan(self) -> list[tuple[str, int, bool]]:
        """Of each cell: its name, its filters, and whether it reduces."""
        filters, repeats = self.config.filters, self.config.repeats
        plan = [("cell_stem_0", filters // 4, True), ("cell_stem_1", filters // 2, True)] if self.config.stem == "imagenet" else []
        for stage in range(3):
            plan += [(f"reduction_cell_{stage - 1}", filters * 2**stage, True)] if stage else []
            plan += [(f"cell_{stage * repeats + index}", filters * 2**stage, False) for index in range(repeats)]
        return plan

    def _passes_previous_on(self, name: str) -> bool:
        """Whether the next cell's previous one is that of this cell."""
        return self.config.skip_reduction_input and name.startswith("reduction")

    def _features(self, x: Tensor) -> Tensor:
        return F.relu(super()._features(x))

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = self.conv0(x)
        prev, maps = x, []
        ends = self._map_cells
        for name in self.outputs:
            y = self.run(self.get_submodule(name), x, prev)
            prev, x = prev if self._passes_previous_on(name) else x, y
            if name in ends:
                maps.append(x)
        return maps

    @property
    def _map_cells(self) -> list[str]:
        """The last cell of each resolution."""
        names = list(self.outputs)
        following = [*(self.outputs[name].reduction for name in names[1:]), None]
        return [name for name, after in zip(names, following, strict=True) if self.outputs[name].reduction != after]

    @property
    def maps_info(self) -> list[MapInfo]:
        return [self.outputs[name] for name in self._map_cells]

    def group_prefixes(self) -> list[tuple[str, ...]]:
        return [("conv0",), *((name,) for name in self.outputs), ("last_linear",)]


def _check(config: NASNetConfig) -> None:
    if config.stem not in STEMS:
        check.fail("NASNetConfig", "stem", f"be one of {', '.join(STEMS)}", repr(config.stem))
    unit = 4 if config.stem == "imagenet" else 2
    if config.filters < unit or config.filters % unit:
        check.fail("NASNetConfig", "filters", f"be a multiple of {unit}, which the smallest cell divides it by", config.filters)
    if config.repeats < 1:
        check.fail("NASNetConfig", "repeats", "be positive", config.repeats)
    for name in ("normal", "reduction"):
        _check_plan(name, getattr(config, name))
    if config.stem == "imagenet" and not _takes_raw_input(config.reduction):
        check.fail("NASNetConfig", "reduction", "read prev by separable convolutions alone where stem='imagenet'", config.reduction, "try stem='cifar'")


def _check_plan(name: str, plan: CellPlan) -> None:
    known: list[Source] = ["cur", "prev"]
    # a plan out of a JSON file is plain lists
    blocks, outputs = plan
    for index, block in enumerate(blocks):
        for kind, source in block:
            if kind not in KINDS or source not in known:
                expected = f"combine operations {', '.join(KINDS)} of {', '.join(map(str, known))} in block {index}"
                check.fail("NASNetConfig", name, expected, f"{kind} of {source}")
        known.append(index)
    if not outputs or not set(outputs) <= {"prev", *range(len(blocks))}:
        check.fail("NASNetConfig", name, "put out blocks or prev", outputs)
    if name == "reduction" and "prev" in outputs:
        check.fail("NASNetConfig", name, "put out blocks alone, which are smaller than prev", outputs)


def _takes_raw_input(plan: CellPlan) -> bool:
    """Whether whatever reads the previous cell brings it to the cell's channels itself."""
    return all(kind.startswith("sep") for block in plan[0] for kind, source in block if source == "prev")


def _variant(
    parameters: int, gmacs: float | None = None, top1: float | None = None, source: str = "arXiv:1707.07012", classes: int = 1000, **fields: object
) -> Variant:
    return Variant(NASNetConfig(**fields), Info(parameters=parameters, gmacs=gmacs, top1=top1, source=source, classes=classes))


# "N @ P" of the paper: N repeats, and P channels before the classifier
register(
    NASNet,
    {
        "nasnet_nano": _variant(
            259_104, source="for tests and demonstrations", stem="cifar", img_size=32, filters=8, repeats=1, stem_channels=8, skip_reduction_input=True
        ),
        # 4 @ 1056
        "nasnetamobile": _variant(5_289_978, 0.564, 74.0),
        # 6 @ 4032
        "nasnetalarge": _variant(88_753_150, 23.89, 82.638, filters=168, repeats=6, stem_channels=96, img_size=331, skip_reduction_input=True),
        # 6 @ 768
        "nasneta_cifar": _variant(3_328_234, classes=10, filters=32, repeats=6, stem="cifar", stem_channels=96, img_size=32),
    },
)
