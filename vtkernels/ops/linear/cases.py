"""What linear and mlp are tested with (`cases`) and timed with (`bench_cases`); each row says why it exists."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vtkernels._core.testing import BenchCase, Case, Inputs

Layout = Callable[[Callable[..., Tensor], tuple[int, ...]], Tensor]
_ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu")


def cases(op: str = "linear") -> list[Case]:
    return _mlp_cases() if op == "mlp" else _linear_cases()


def _linear_cases() -> list[Case]:
    return [
        _linear("projection", "tokens of two images", (2, 49, 96), 96),
        _linear("qkv", "wider than it is deep, and rows no tile divides", (2, 33, 48), 144),
        *(_linear(name, "an activation and its derivative", (2, 20, 24), 40, activation=name, representative=name == "gelu") for name in _ACTIVATIONS),
        # sizes
        *(_linear(f"rows_{n}", "around a tile of rows", (n, 20), 36) for n in (1, 13, 14, 15, 29)),
        *(_linear(f"channels_{c}", "depths around a vector", (19, c), 20) for c in (1, 15, 16, 17)),
        *(_linear(f"outputs_{d}", "around a tile of columns", (19, 20), d) for d in (1, 31, 32, 33, 65)),
        _linear("deep", "more channels than one chunk of the depth, the last chunk another size", (30, 801), 40),
        _linear("deep_activation", "the activation waits for the last chunk", (30, 801), 40, activation="gelu"),
        _linear("wide", "more outputs than one block of the weight's gradient", (40, 24), 420),
        _linear("many_rows", "the weight's gradient is summed in segments, and the last is short", (3, 1031, 10), 33),
        _linear("one_token", "no leading dimension", (24,), 40),
        _linear("four_dimensions", "maps of tokens", (2, 5, 7, 12), 20),
        _linear("empty_batch", "no token: the gradients of the parameters are 0", (0, 7, 24), 40, activation="gelu", representative=True),
        # parameters
        _linear("no_bias", "a model without biases", (2, 20, 24), 40, bias=False, representative=True),
        _linear("no_bias_gelu", "an activation without a bias", (2, 20, 24), 40, bias=False, activation="gelu"),
        _linear("transposed_weight", "a weight with strides of its own", (2, 20, 24), 40, transposed_weight=True),
        # numbers
        _linear("large_inputs", "activations far out, where their slopes are 0 and 1", (2, 20, 24), 40, gain=30.0, activation="gelu"),
        _linear("large_offset", "sums that cancel", (2, 20, 48), 40, offset=8.0),
        # memory
        _linear("row_slice", "tokens are a slice of more tokens", (4, 11, 24), 40, layout=_slice_of_rows),
        _linear("channel_slice", "tokens are a slice of wider rows at an odd offset", (4, 11, 24), 40, layout=_slice_of_columns),
        _linear("channels_first", "the last dimension is not dense", (4, 11, 24), 40, layout=_last_first),
        _linear("broadcast_rows", "one token seen by all", (4, 11, 24), 40, layout=_broadcast),
    ]  # fmt: skip


def _mlp_cases() -> list[Case]:
    return [
        _mlp("block", "a transformer block's, four times as wide inside", (2, 49, 24), 96, 24, representative=True),
        *(_mlp(name, "an activation computed anew in the backward", (2, 20, 24), 40, 24, activation=name) for name in _ACTIVATIONS),
        _mlp("no_activation", "two linear layers", (2, 20, 24), 40, 24, activation=None),
        *(_mlp(f"rows_{n}", "around a tile of rows", (n, 20), 36, 20) for n in (1, 13, 14, 15)),
        _mlp("head", "another number of outputs than inputs", (30, 20), 36, 50),
        _mlp("deep", "more hidden channels than one chunk of the depth", (30, 20), 801, 33),
        _mlp("many_rows", "the weights' gradients are summed in segments", (2, 1031, 9), 20, 9),
        _mlp("one_channel", "the narrowest layers there are", (5, 1), 1, 1),
        _mlp("one_token", "no leading dimension", (24,), 40, 24),
        _mlp("empty_batch", "no token: the gradients of the parameters are 0", (0, 7, 24), 40, 24, representative=True),
        _mlp("no_biases", "layers without biases", (2, 20, 24), 40, 24, biases=(), representative=True),
        _mlp("first_bias", "a bias in the first layer alone", (2, 20, 24), 40, 24, biases=("b1",)),
        _mlp("second_bias", "a bias in the second layer alone", (2, 20, 24), 40, 24, biases=("b2",)),
        _mlp("channel_slice", "tokens are a slice of wider rows at an odd offset", (4, 11, 24), 40, 24, layout=_slice_of_columns),
        _mlp("channels_first", "the last dimension is not dense", (4, 11, 24), 40, 24, layout=_last_first),
    ]  # fmt: skip


def _linear(
    name: str,
    why: str,
    shape: tuple[int, ...],
    outputs: int,
    *,
    activation: str | None = None,
    bias: bool = True,
    transposed_weight: bool = False,
    gain: float = 1.0,
    offset: float = 0.0,
    layout: Layout | None = None,
    representative: bool = False,
) -> Case:
    """`gain` and `offset`: standard deviation and mean of the tokens."""

    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        draw = _drawer(dtype, device, generator)
        scale = shape[-1] ** -0.5
        inputs: Inputs = {"x": (layout or _contiguous)(lambda *size: gain * draw(*size) + offset, shape)}
        inputs["weight"] = (scale * draw(shape[-1], outputs)).T if transposed_weight else scale * draw(outputs, shape[-1])
        return inputs | ({"bias": draw(outputs)} if bias else {}) | {"activation": activation}

    return Case(name, why, make, representative)


def _mlp(
    name: str,
    why: str,
    shape: tuple[int, ...],
    hidden: int,
    outputs: int,
    *,
    activation: str | None = "gelu",
    biases: tuple[str, ...] = ("b1", "b2"),
    layout: Layout | None = None,
    representative: bool = False,
) -> Case:
    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        draw = _drawer(dtype, device, generator)
        inputs: Inputs = {"x": (layout or _contiguous)(draw, shape)}
        for layer, (width, depth) in enumerate(((hidden, shape[-1]), (outputs, hidden)), 1):
            inputs[f"w{layer}"] = depth**-0.5 * draw(width, depth)
            inputs[f"b{layer}"] = draw(width) if f"b{layer}" in biases else None
        return inputs | {"activation": activation}

    return Case(name, why, make, representative)


def _drawer(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def _contiguous(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(*shape)


def _slice_of_rows(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, tokens, channels = shape
    return draw(2 * batch, tokens + 3, channels)[::2, 2:-1]


def _slice_of_columns(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    # an odd offset and an odd row: nothing is aligned to a register
    return draw(*shape[:-1], shape[-1] + 5)[..., 3:-2]


def _last_first(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, tokens, channels = shape
    return draw(batch, channels, tokens).mT


def _broadcast(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(shape[-1]).expand(shape)


# tokens of one image and channels of Swin-T's stages at 224 pixels
_STAGES = {1: (3136, 96), 2: (784, 192), 3: (196, 384), 4: (49, 768)}
# output channels over input channels, and input channels over the stage's; merging is a layer between stages
_LAYERS = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (0.25, 4), "merging": (0.5, 4)}


def bench_cases(op: str = "linear", stages: Iterable[int] = tuple(_STAGES), batch: int = 8) -> list[BenchCase]:
    """The layers of Swin-T: four linear ones a stage and the one that merges patches, or its MLPs."""
    if op == "mlp":
        return [_bench_case(f"mlp/{stage}", stage, batch, 4.0, 1.0, "gelu") for stage in stages]
    kinds = [(kind, stage) for stage in stages for kind in _LAYERS if kind != "merging" or stage < 4]
    return [_bench_case(f"{kind}/{stage}", stage, batch, *_LAYERS[kind], None) for kind, stage in kinds]


def _bench_case(name: str, stage: int, batch: int, wider: float, inputs: float, activation: str | None) -> BenchCase:
    tokens, channels = _STAGES[stage]
    rows, depth = batch * tokens // (4 if name.startswith("merging") else 1), int(channels * inputs)
    width = int(depth * wider)
    if activation:
        case, weights, ends = _mlp(name, "", (rows, depth), width, depth), 2 * width * depth, 2 * depth
    else:
        case, weights, ends = _linear(name, "", (rows, depth), width), width * depth, depth + width
    kept = width if activation else 0
    return BenchCase(
        name,
        f"{rows} tokens, {depth} to {width} channels" + (" and back" if activation else ""),
        case.make,
        model="swin_t",
        # forward: x read, the result and what the backward needs written; backward: x, gradients and what was saved read, gradients written
        elements={"forward": rows * (ends + kept) + weights, "backward": rows * (ends + depth + kept) + 2 * weights},
        flops={"forward": 2 * rows * weights, "backward": 4 * rows * weights},
    )
