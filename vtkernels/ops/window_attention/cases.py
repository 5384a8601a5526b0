"""What window attention is tested with (`cases`) and timed with (`bench_cases`); each row says why it exists."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.testing import BenchCase, Case, Inputs

Layout = Callable[[Callable[..., Tensor], tuple[int, ...]], Tensor]


def cases(op: str = "window_attention") -> list[Case]:
    return [
        # published models
        _case("swin_7x7", "Swin's window, unshifted", (14, 14), 7, heads=2, head_dim=32, representative=True),
        _case("swin_7x7_shifted", "Swin's window, shifted by window // 2", (14, 14), 7, 3, heads=2, head_dim=32, representative=True),
        _case("one_window", "Swin's last stage: nothing but one window", (7, 7), 7, heads=3, head_dim=32),
        _case("one_window_shifted", "a shift of the only window still separates four regions", (7, 7), 7, 3),
        _case("swin_12x12_shifted", "Swin at 384: more than 64 tokens, so statistics are saved", (24, 24), 12, 6, batch=1, head_dim=32, representative=True),
        _case("swinv2_8x8_cosine", "SwinV2: normalised rows and a learned scale", (16, 16), 8, 4, cosine=True, head_dim=32, representative=True),
        # maps and windows
        _case("non_square", "rows and columns of windows must not be exchanged", (14, 35), 7, 3),
        _case("non_square_tall", "the same the other way round", (35, 7), 7, 3),
        _case("window_2", "the smallest window", (6, 8), 2, 1),
        _case("window_3x5", "rectangular, odd, N = 15", (9, 15), (3, 5), (1, 2)),
        _case("window_5x3", "the same the other way round", (10, 9), (5, 3), (2, 1)),
        _case("window_4", "N = 16: exactly one tile", (8, 12), 4, 2),
        _case("window_8", "N = 64: the largest window that saves no statistics", (16, 8), 8, 4),
        _case("window_5x13", "N = 65 = 1 mod 16, one more than fits without statistics", (5, 26), (5, 13), (2, 6)),
        _case("window_3x11", "N = 33 = 1 mod 16: a lone last key", (6, 11), (3, 11), (1, 5)),
        _case("window_12x8", "rectangular and larger than 64 tokens", (12, 16), (12, 8), (6, 4)),
        _case("window_14", "N = 196: a last tile of four tokens", (14, 14), 14, 7, batch=1, heads=1, head_dim=16),
        _case("window_16", "N = 256: many tiles", (16, 32), 16, 8, batch=1, head_dim=16),
        _case("window_24", "N = 576: the largest SwinV2 window", (24, 24), 24, 12, batch=1, heads=1, head_dim=16),
        _case("window_24_small_map", "a window larger than the map: most tokens are padding", (10, 9), 24, batch=1, heads=1, head_dim=16, with_qkv_bias=True),
        _case("window_32", "N = 1024: the largest window", (32, 32), 32, 5, batch=1, heads=1),
        _case("shift_one_axis", "one axis shifted, the other not", (8, 8), 4, (0, 2)),
        _case("largest_shift", "a shift of window - 1", (12, 12), 4, (3, 3)),
        *_large_heads(),
        # heads
        _case("one_head", "no stride between heads", (8, 8), 4, 2, heads=1),
        _case("five_heads", "a head count no power of two divides", (8, 8), 4, 2, heads=5),
        *(_case(f"head_dim_{d}", "the kernels are specialised by head dimension", (7, 14), 7, 3, head_dim=d) for d in (16, 24, 40, 64)),
        *(_case(f"head_dim_{d}", "wide heads: tiles of several registers", (8, 4), 4, 2, batch=1, head_dim=d) for d in (128, 256)),
        _case("head_dim_12", "a head dimension the CPU kernels leave to others", (8, 8), 4, 2, head_dim=12),
        # maps the window does not divide
        *_ragged(),
        # position bias, scores
        _case("no_bias", "neither table nor dense bias", (14, 7), 7, 3, table=None),
        _case("dense_bias", "a dense bias with its own gradient", (8, 12), 4, 2, table=None, dense_bias=True),
        _case("dense_bias_large_window", "the same where N exceeds one tile", (9, 9), 9, 4, batch=1, table=None, dense_bias=True),
        _case("custom_scale", "a scale that is not head_dim ** -0.5", (8, 8), 4, 2, scale=0.3),
        _case("cosine_no_shift", "cosine attention without mask or padding", (8, 8), 4, cosine=True),
        _case("cosine_scaled", "logit_scale and scale together", (8, 8), 4, 2, cosine=True, scale=1.7),
        _case("cosine_large_window", "cosine attention with saved statistics", (12, 12), 12, 6, batch=1, cosine=True),
        *(_case(f"large_logits_{w}", "scores in the thousands: a rounded log-sum-exp is not enough", (w, w), w, 2, gain=20.0) for w in (7, 9)),
        *(_case(f"table_{sign}200_{w}", "a large bias must be added after the product, not before", (w, w), w, 2, table=200.0 if sign == "plus" else -200.0)
          for sign in ("plus", "minus") for w in (7, 9)),
        _case("table_mixed_signs", "biases of +-200 side by side: most probabilities are 0", (8, 8), 4, 2, table_spread=200.0),
        # dropout
        _case("dropout", "every backend drops the same weights", (8, 8), 4, 2, dropout_p=0.25, seed=2**40 + 3, representative=True),
        _case("dropout_large_window", "the same across tiles", (9, 9), 9, 4, batch=1, dropout_p=0.5, seed=7),
        _case("dropout_ragged", "padded keys may be dropped too", (7, 6), 4, 2, dropout_p=0.3, seed=-5, with_qkv_bias=True),
        _case("dropout_cosine", "dropout in front of the normalised rows' gradient", (8, 8), 4, dropout_p=0.1, seed=1, cosine=True, head_dim=32),
        # memory
        _case("row_slice", "qkv is a slice of rows and columns of a larger map", (8, 8), 4, 2, layout=_slice_of_map),
        _case("channel_slice", "qkv is a slice of wider rows", (8, 8), 4, 2, layout=_slice_of_channels),
        _case("channels_first", "qkv is a transposed [B, 3C, H, W]: its last dimension is not dense", (8, 8), 4, 2, layout=_channels_first),
        _case("transposed_map", "qkv is a transposed [B, W, H, 3C]", (8, 12), 4, 2, layout=_transposed_map),
        _case("broadcast_batch", "qkv is expanded: one image seen twice", (8, 8), 4, 2, layout=_broadcast_batch),
        _case("half_parameters", "parameters in qkv's own dtype, also where it is half", (7, 6), 4, 2, same_dtype=True, with_qkv_bias=True),
        _case("transposed_table", "a table with strides of its own", (8, 8), 4, 2, transposed_table=True),
        # batch
        _case("empty_batch", "no image at all", (8, 8), 4, 2, batch=0, representative=True),
        _case("empty_batch_large_window", "no image, statistics saved", (9, 9), 9, 4, batch=0),
        _case("batch_1", "one image, one head, one window", (4, 4), 4, batch=1, heads=1),
        _case("batch_7", "a batch no power of two divides", (4, 8), 4, 2, batch=7),
    ]  # fmt: skip


def _ragged() -> Iterable[Case]:
    for order, shift_first in (("torchvision", False), ("timm", True)):
        why = f"a map the window does not divide, padded and shifted in {order}'s order"
        yield _case(f"ragged_{order}", why, (10, 13), 7, 3, with_qkv_bias=True, shift_first=shift_first, representative=True)
        yield _case(f"ragged_{order}_zeros", f"{why}; padding without bias", (9, 5), 4, 2, shift_first=shift_first)
        yield _case(f"ragged_{order}_masked", f"{why}; padding takes no part", (9, 6), 4, 2, with_qkv_bias=True, shift_first=shift_first, mask_padding=True)
        yield _case(f"ragged_{order}_large_window", f"{why}, with saved statistics", (13, 10), 9, 4, batch=1, with_qkv_bias=True, shift_first=shift_first)
    yield _case("ragged_unshifted", "padding without a shift", (10, 13), 7, with_qkv_bias=True)
    yield _case("ragged_one_axis", "only the columns are padded", (8, 9), 4, 2, with_qkv_bias=True)
    yield _case("ragged_masked_no_shift", "the padding mask without a shift mask", (5, 6), 4, mask_padding=True)
    yield _case("ragged_masked_large_window", "the padding mask across tiles", (13, 10), 9, 4, batch=1, mask_padding=True, with_qkv_bias=True)
    yield _case("map_smaller_than_window", "H and W smaller than the window", (3, 5), 7, 3, with_qkv_bias=True)
    # a shift would leave the token alone in its region, and its gradients nothing but rounding
    yield _case("one_pixel", "a map of one token", (1, 1), 2, with_qkv_bias=True)
    yield _case("cosine_ragged", "padded rows are normalised too", (9, 7), 4, 2, cosine=True, with_qkv_bias=True)
    yield _case("cosine_ragged_zeros", "padded rows of zeros have no direction", (7, 6), 4, 2, cosine=True)
    yield _case("dense_bias_ragged", "a dense bias beside padding", (7, 6), 4, 2, table=None, dense_bias=True, with_qkv_bias=True)


def _large_heads() -> Iterable[Case]:
    """Heads of 32 in windows of 65 to 144 tokens, which have a backward of their own on GPUs."""
    for order, shift_first in (("torchvision", False), ("timm", True)):
        why = f"padded and shifted in {order}'s order, padding with a gradient"
        yield _case(f"large_heads_ragged_{order}", why, (13, 20), 12, 5, batch=1, head_dim=32, with_qkv_bias=True, shift_first=shift_first)
    yield _case("large_heads_masked", "padding takes no part", (10, 13), 12, 5, head_dim=32, with_qkv_bias=True, mask_padding=True)
    yield _case("large_heads_unshifted", "no seam, several images, heads and scale", (12, 24), 12, heads=3, head_dim=32, scale=0.3)
    yield _case("large_heads_9x9", "N = 81: rows of the last tiles are beyond the window", (13, 10), 9, 4, batch=1, head_dim=32, with_qkv_bias=True)
    yield _case("large_heads_5x13", "rectangular, N = 65", (5, 26), (5, 13), (2, 6), batch=1, head_dim=32, same_dtype=True)
    yield _case("large_heads_no_table", "no position bias", (12, 16), (12, 8), (6, 4), batch=1, head_dim=32, table=None)
    yield _case("large_heads_logits", "scores in the thousands", (12, 12), 12, batch=1, heads=1, head_dim=32, gain=20.0)
    yield _case("large_heads_biases", "biases of +-200 side by side", (12, 12), 12, 2, batch=1, heads=1, head_dim=32, table_spread=200.0)
    yield _case("large_heads_slice", "qkv is a slice that no copy of 16 bytes fits", (12, 12), 12, 2, batch=1, heads=1, head_dim=32, layout=_slice_of_channels)


def _case(
    name: str,
    why: str,
    size: tuple[int, int],
    window: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    *,
    batch: int = 2,
    heads: int = 2,
    head_dim: int = 8,
    table: float | None = 0.0,
    table_spread: float = 1.0,
    dense_bias: bool = False,
    cosine: bool = False,
    with_qkv_bias: bool = False,
    gain: float = 1.0,
    layout: Layout | None = None,
    same_dtype: bool = False,
    transposed_table: bool = False,
    representative: bool = False,
    **options: Any,
) -> Case:
    """`table`: mean of the bias table, None for no table; `gain`: standard deviation of qkv; `options` go to the op as they are."""
    window_h, window_w = (window, window) if isinstance(window, int) else window
    channels, tokens, span = heads * head_dim, window_h * window_w, (2 * window_h - 1) * (2 * window_w - 1)

    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        # float32 beside half precision, as training under autocast has it
        parameter_dtype = dtype if same_dtype else torch.promote_types(dtype, torch.float32)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        qkv = (layout or _contiguous)(lambda *shape: (gain * draw(*shape)).to(device, dtype), (batch, *size, 3 * channels))
        inputs: Inputs = {"qkv": qkv, "num_heads": heads, "window_size": window, "shift_size": shift, **options}
        parameters: dict[str, Tensor] = {}
        if table is not None:
            parameters["bias_table"] = table + table_spread * (draw(heads, span).T if transposed_table else draw(span, heads))
        if dense_bias:
            parameters["bias"] = draw(heads, tokens, tokens)
        if cosine:
            parameters["logit_scale"] = 10.0 * (0.3 * draw(heads)).exp()
        if with_qkv_bias:
            parameters["qkv_bias"] = draw(3 * channels)
        return inputs | {key: value.to(device, parameter_dtype) for key, value in parameters.items()}

    return Case(name, why, make, representative)


def _contiguous(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(*shape)


def _slice_of_map(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, height, width, channels3 = shape
    return draw(batch, height + 3, 2 * width, channels3)[:, 2:-1, ::2]


def _slice_of_channels(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    # an odd offset and an odd row: nothing is aligned to a register
    return draw(*shape[:3], shape[3] + 5)[..., 3:-2]


def _channels_first(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, height, width, channels3 = shape
    return draw(batch, channels3, height, width).permute(0, 2, 3, 1)


def _transposed_map(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, height, width, channels3 = shape
    return draw(batch, width, height, channels3).transpose(1, 2)


def _broadcast_batch(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(1, *shape[1:]).expand(shape)


def _few_again_and_again(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    """The host takes seconds to draw a large batch of maps, of which a GPU that is lent has few. No time depends on the numbers."""
    few = draw(min(shape[0], 8), *shape[1:])
    return few if len(few) == shape[0] else few[torch.arange(shape[0], device=few.device) % len(few)]


# model -> (channels and heads of stage 1, map of stage 1, window); each later stage doubles the first two and halves the map
_MODELS = {
    "swin_t": (96, 3, 56, 7),
    "swin_s": (96, 3, 56, 7),
    "swin_b": (128, 4, 56, 7),
    "swin_l": (192, 6, 56, 7),
    "swin_t_256": (96, 3, 64, 8),
    "swin_t_384": (96, 3, 96, 12),
    "swin_s_384": (96, 3, 96, 12),
    "swin_b_384": (128, 4, 96, 12),
    "swin_l_384": (192, 6, 96, 12),
    "swinv2_t_256": (96, 3, 64, 8),
    "swinv2_b_256": (128, 4, 64, 8),
}


def bench_cases(models: Iterable[str] = tuple(_MODELS), batch: int = 8) -> list[BenchCase]:
    """Every stage of the models, unshifted and (where there is more than one window) shifted."""
    rows = []
    for model in models:
        channels, heads, size, window = _MODELS[model]
        for stage in range(4):
            edge, doublings = size >> stage, 2**stage
            for shift in (0, window // 2) if edge > window else (0,):
                rows.append(_bench_case(model, stage + 1, batch, edge, channels * doublings, heads * doublings, window, shift))
    return rows


def gpu_cases(op: str = "window_attention", batch: int = 128) -> list[BenchCase]:
    """First stages first: they move the most bytes. Then the third, which Swin repeats most; then larger windows, and SwinV2's."""
    small = sorted(bench_cases(("swin_b", "swin_t"), batch), key=lambda case: "1324".index(case.name.split("/stage")[1][0]))
    large = [case for case in bench_cases(("swin_b_384", "swinv2_t_256"), max(1, batch // 2)) if "/stage1/" in case.name or "/stage3/" in case.name]
    return small + large


def _bench_case(model: str, stage: int, batch: int, edge: int, channels: int, heads: int, window: int, shift: int) -> BenchCase:
    name = f"{model}/stage{stage}/shift{shift}"
    shapes = {"batch": batch, "heads": heads, "head_dim": channels // heads}
    case = _case(name, "", (edge, edge), window, shift, **shapes, table_spread=0.02, cosine="v2" in model, layout=_few_again_and_again)
    image_tokens, tokens = batch * edge * edge, window * window
    items = batch * math.ceil(edge / window) ** 2 * heads
    product = 2 * tokens * tokens * channels // heads
    return BenchCase(
        name,
        f"stage {stage} of {model}: {edge} x {edge} map, {channels} channels, {heads} heads",
        case.make,
        model=model,
        # forward: read q, k, v, write the output; backward: read these and the output's gradient, write three gradients
        elements={"forward": 4 * channels * image_tokens, "backward": 7 * channels * image_tokens},
        # forward: scores and product with v; backward: scores again, and one product for each of dP, dQ, dK, dV
        flops={"forward": 2 * product * items, "backward": 5 * product * items},
    )
