"""What the pairs are tested with (`cases`) and timed with (`bench_cases`); each row says why it exists."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.testing import BenchCase, Case, Inputs

Layout = Callable[[Callable[..., Tensor], tuple[int, ...]], Tensor]


def cases(op: str = "drloc_pairs") -> list[Case]:
    return [
        # published models
        _case("swin_7x7", "Swin's last stage, as the paper trains it", (7, 7), 768, 64),
        _case("swin_stage", "the same with fewer channels", (7, 7), 96, 32, representative=True),
        _case("cvt_14x14", "a map with more positions than pairs", (14, 14), 64, 64),
        _case("resnet", "a backbone with channels first", (7, 7), 40, 16, layout="bchw", representative=True),
        _case("vit_tokens", "tokens in row-major order", (6, 6), 48, 20, layout="bnc", representative=True),
        _case("tokens_behind_a_class_token", "the tokens are a slice: no stride is the product of others", (4, 5), 24, 9, layout="bnc", memory=_behind_one),
        # maps
        _case("wide", "2 x 9: rows and columns must not be exchanged", (2, 9), 32, 21, representative=True),
        _case("tall", "9 x 2: the same the other way round", (9, 2), 32, 21),
        _case("one_row", "1 x 5: the rows' distance is always 0", (1, 5), 16, 12),
        _case("one_column", "5 x 1", (5, 1), 16, 12),
        _case("one_token", "1 x 1: every row of the gradient goes to one place", (1, 1), 24, 33),
        _case("large_map", "most positions get no gradient and must be zeroed", (24, 20), 16, 8),
        # pairs
        _case("one_pair", "the fewest there can be", (3, 4), 16, 1),
        _case("many_pairs", "more references than a tile of them", (3, 3), 16, 300),
        _case("prime_pairs", "37 pairs of 5 images: nothing divides", (5, 3), 32, 37, batch=5),
        # channels
        *(_case(f"channels_{c}", "no vector divides the row", (4, 3), c, 7) for c in (1, 2, 3, 15, 17, 65, 129)),
        _case("channels_520", "more than one block of channels, the last a short one", (3, 3), 520, 11),
        # targets
        _case("signed", "first minus second, both signs", (4, 6), 16, 40, target="signed", representative=True),
        _case("counted", "distances in positions", (4, 6), 16, 40, normalize=False),
        _case("signed_counted", "both", (6, 4), 16, 40, target="signed", normalize=False),
        # the draw
        _case("seeds", "a negative seed and an offset beyond 32 bits", (7, 5), 16, 30, seed=-3, offset=2**40 + 5),
        _case("given", "positions instead of a draw", (5, 4), 16, 13, given="random", representative=True),
        _case("given_int32", "the same in 32 bits, not contiguous", (5, 4), 16, 13, given="int32"),
        _case("given_corners", "the four corners, each with each", (5, 4), 16, 16, given="corners"),
        _case("identical_pairs", "a position with itself: target 0, two gradients to one place", (5, 4), 16, 10, given="identical"),
        # memory
        _case("map_slice", "rows and columns of a larger map", (4, 5), 24, 12, memory=_slice_of_map),
        _case("channel_slice", "channels at an odd offset of wider rows", (4, 5), 24, 12, memory=_slice_of_channels),
        _case("transposed_map", "[B, W, H, C] transposed", (4, 6), 24, 12, memory=_transposed_map),
        _case("expanded", "one image seen twice", (4, 5), 24, 12, memory=_expanded),
        # values and batch
        _case("large_values", "features and gradients of 10000: float16's sums come near its limit", (6, 7), 16, 12, gain=1e4),
        _case("empty_batch", "no image at all", (4, 5), 16, 12, batch=0, representative=True),
        _case("batch_1", "one image", (4, 5), 200, 12, batch=1),
        _case("batch_9", "more images than threads, an odd number", (3, 3), 8, 5, batch=9),
    ]


def _case(
    name: str,
    why: str,
    size: tuple[int, int],
    channels: int,
    pairs: int,
    *,
    batch: int = 2,
    layout: str = "bhwc",
    memory: Layout | None = None,
    given: str = "",
    gain: float = 1.0,
    seed: int = 11,
    representative: bool = False,
    **options: Any,
) -> Case:
    """`gain`: standard deviation of the features; `options` go to the op as they are."""
    height, width = size
    shape = {"bhwc": (batch, height, width, channels), "bchw": (batch, channels, height, width), "bnc": (batch, height * width, channels)}[layout]

    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        def draw(*shape: int) -> Tensor:
            return (gain * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

        inputs: Inputs = {"features": (memory or _contiguous)(draw, shape), "num_pairs": pairs, "layout": layout, **options}
        if layout == "bnc":
            inputs["grid"] = size
        if given:
            return inputs | {"positions": _positions(given, batch, pairs, size, generator).to(device)}
        return inputs | {"seed": seed}

    return Case(name, why, make, representative)


def _positions(kind: str, batch: int, pairs: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    last = torch.tensor([size[0] - 1, size[1] - 1] * 2)
    if kind == "corners":
        bits = torch.arange(pairs)[:, None] >> torch.arange(4) & 1
        return (bits * last).expand(batch, pairs, 4).contiguous()
    drawn = torch.stack([torch.randint(int(end) + 1, (batch, pairs), generator=generator) for end in last], -1)
    if kind == "identical":
        drawn = torch.cat([drawn[..., :2]] * 2, -1)
    return drawn.int().transpose(0, 1).contiguous().transpose(0, 1) if kind == "int32" else drawn


def _contiguous(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(*shape)


def _behind_one(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(shape[0], shape[1] + 1, shape[2])[:, 1:]


def _slice_of_map(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, height, width, channels = shape
    return draw(batch, height + 3, 2 * width, channels)[:, 2:-1, ::2]


def _slice_of_channels(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(*shape[:3], shape[3] + 5)[..., 3:-2]


def _transposed_map(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, height, width, channels = shape
    return draw(batch, width, height, channels).transpose(1, 2)


def _expanded(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(1, *shape[1:]).expand(shape)


# of the goal table: batch, channels, edge of the map, pairs
_SHAPES = [(batch, *rest, pairs) for batch in (64, 128, 256) for rest in ((768, 7), (384, 14)) for pairs in (32, 64)]


def bench_cases() -> list[BenchCase]:
    return [_bench_case(*shape) for shape in _SHAPES]


def gpu_cases(op: str = "drloc_pairs", batch: int = 128) -> list[BenchCase]:
    """Swin's last map and one of ViT's size, then more pairs."""
    return [_bench_case(*shape) for shape in ((batch, 768, 7, 32), (batch, 768, 14, 32), (2 * batch, 768, 7, 64))]


def _bench_case(batch: int, channels: int, edge: int, pairs: int) -> BenchCase:
    name = f"b{batch}/c{channels}/{edge}x{edge}/m{pairs}"
    case = _case(name, "", (edge, edge), channels, pairs, batch=batch)
    rows = 2 * pairs * batch
    # of the map no more is read than the pairs ask for, once each
    read, map_ = min(rows, edge * edge * batch) * channels, edge * edge * batch * channels
    return BenchCase(
        name,
        f"{batch} maps of {edge} x {edge} and {channels} channels, {pairs} pairs each",
        case.make,
        elements={"forward": read + rows * channels, "backward": rows * channels + map_},
        flops={"forward": 0, "backward": rows * channels},
    )
