"""What class and pooled attention are tested with (`cases`) and timed with (`bench_cases`); each row says why it exists."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.testing import BenchCase, Case, Inputs

Layout = Callable[[Callable[..., Tensor], tuple[int, ...]], Tensor]
_ODD = ((1, "one"), (3, "fewer than a tile"), (5, "odd"), (9, "one more than a group"), (13, "two groups, one ragged"), (17, "three groups"))


def cases(op: str = "class_attention") -> list[Case]:
    return _pooled_cases() if op == "pooled_attention" else _class_cases()


def _class_cases() -> list[Case]:
    return [
        # published models
        _class("cait_xxs24", "four heads of 48 channels, and the 196 patches of an image", 192, 4, 197, representative=True),
        _class("cait_xs24", "six heads: no power of two", 288, 6, 50, representative=True),
        _class("cait_m36_384", "sixteen heads, and more tokens than one block", 768, 16, 577, batch=1),
        _class("deit_like", "heads of 64 channels", 128, 2, 33),
        # sizes
        _class("class_token_alone", "no patch: the output is the class token's own value", 32, 2, 1),
        _class("two_tokens", "one patch", 32, 2, 2),
        *(_class(f"tokens_{n}", "token counts around a tile and a vector", 48, 3, n) for n in (3, 7, 8, 15, 16, 17, 64, 65)),
        *(_class(f"heads_{h}", f"{why} head(s)", 8 * h, h, 21) for h, why in _ODD),
        *(_class(f"head_dim_{d}", "narrow, odd and wide heads", 2 * d, 2, 21) for d in (1, 3, 12, 20, 100)),
        _class("channels_6", "rows shorter than a vector", 6, 2, 6),
        _class("channels_35", "rows that end in the middle of a vector, five heads of seven", 35, 5, 19, representative=True),
        _class("heads_of_one_channel", "as many heads as channels", 24, 24, 10),
        _class("batch_1", "one image", 64, 4, 30, batch=1),
        _class("batch_9", "a batch no tile divides", 48, 3, 11, batch=9),
        _class("empty_batch", "no image at all", 48, 3, 11, batch=0, representative=True),
        # parameters
        _class("no_biases", "a model without qkv_bias", 64, 4, 30, biases=""),
        _class("q_and_v_bias", "a key bias would change nothing", 64, 4, 30, biases="qv"),
        _class("k_bias_alone", "it cancels: its gradient is exactly 0", 64, 4, 30, biases="k"),
        _class("half_parameters", "weights in the tokens' own dtype, also where it is half", 64, 4, 30, same_dtype=True, representative=True),
        _class("transposed_weights", "weights with strides of their own", 64, 4, 30, transposed_weights=True),
        # scores
        _class("custom_scale", "a scale that is not head_dim ** -0.5", 64, 4, 30, scale=0.3),
        _class("zero_scale", "equal scores: the mean of the values", 64, 4, 30, scale=0.0),
        _class("large_logits", "scores in the hundreds: most probabilities are 0", 64, 4, 30, gain=20.0),
        _class("large_offset", "tokens far from 0, whose scores nearly agree", 64, 4, 30, offset=8.0),
        _class("small_tokens", "tokens so small that all scores agree", 64, 4, 30, gain=1e-3),
        # dropout
        _class("dropout", "every backend drops the same weights", 96, 6, 50, dropout_p=0.25, seed=2**40 + 3, representative=True),
        _class("dropout_one_token", "the only weight may be dropped: the value bias with it", 32, 4, 1, dropout_p=0.5, seed=-5, batch=5),
        _class("dropout_many_heads", "dropout across groups of heads", 72, 18, 20, dropout_p=0.9, seed=11),
        # memory
        _class("token_slice", "tokens are a slice of more tokens and images", 48, 3, 11, layout=_slice_of_rows),
        _class("channel_slice", "tokens are a slice of wider rows at an odd offset", 48, 3, 11, layout=_slice_of_columns, representative=True),
        _class("channels_first", "tokens are a transposed [B, C, T]: their last dimension is not dense", 48, 3, 11, layout=_last_first),
        _class("tokens_first", "tokens are a transposed [T, B, C]", 48, 3, 11, layout=_transposed),
        _class("broadcast_batch", "tokens are expanded: one image seen twice", 48, 3, 11, layout=_broadcast_batch),
    ]  # fmt: skip


def _pooled_cases() -> list[Case]:
    return [
        _pooled("one_query", "attention pooling: one query, SigLIP's head", 1, 196, 64, representative=True),
        _pooled("deit_distilled", "a class and a distillation token", 2, 198, 64, representative=True),
        _pooled("cait_d48", "heads of 48 channels", 1, 197, 48),
        *(_pooled(f"queries_{m}", "around a group of queries", m, 21, 16) for m in (3, 4, 5, 8, 9, 17)),
        *(_pooled(f"keys_{n}", "around a tile of keys", 2, n, 16) for n in (1, 2, 3, 7, 8, 64, 65)),
        *(_pooled(f"dim_{d}", "narrow, odd and wide heads", 2, 19, d) for d in (1, 5, 24, 40, 100, 160)),
        _pooled("more_queries_than_keys", "nothing here needs few queries", 40, 7, 16),
        _pooled("one_head", "no stride between heads", 1, 30, 32, heads=1),
        _pooled("empty_batch", "no image at all", 2, 30, 32, batch=0, representative=True),
        _pooled("batch_5", "a batch no power of two divides", 2, 30, 32, batch=5),
        _pooled("custom_scale", "a scale that is not D ** -0.5", 2, 30, 32, scale=0.7),
        _pooled("large_logits", "scores in the hundreds", 2, 30, 32, gain=12.0),
        _pooled("dropout", "every backend drops the same weights", 2, 50, 32, dropout_p=0.25, seed=2**40 + 3, representative=True),
        _pooled("dropout_one_key", "the only weight may be dropped", 3, 1, 16, dropout_p=0.5, seed=-1, batch=4),
        _pooled("heads_last", "q, k and v are permuted [B, N, heads, D]", 2, 30, 32, layout=_heads_last, representative=True),
        _pooled("last_not_dense", "q, k and v are transposed in their last two dimensions", 2, 30, 32, layout=_columns_first),
        _pooled("expanded_query", "a learned query that all images share", 1, 30, 32, layout=_broadcast_batch),
        _pooled("column_slice", "slices of wider rows at an odd offset", 2, 30, 33, layout=_slice_of_columns),
    ]  # fmt: skip


def _class(
    name: str,
    why: str,
    channels: int,
    heads: int,
    tokens: int,
    *,
    batch: int = 2,
    biases: str = "qkv",
    same_dtype: bool = False,
    transposed_weights: bool = False,
    gain: float = 1.0,
    offset: float = 0.0,
    layout: Layout | None = None,
    representative: bool = False,
    **options: Any,
) -> Case:
    """`gain` and `offset`: standard deviation and mean of the tokens; `options` go to the op as they are."""

    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        # float32 beside half precision, as training under autocast has it
        parameter_dtype = dtype if same_dtype else torch.promote_types(dtype, torch.float32)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        inputs: Inputs = {"tokens": (layout or _contiguous)(lambda *shape: (gain * draw(*shape) + offset).to(device, dtype), (batch, tokens, channels))}
        for part in "qkv":
            weight = 1.5 * channels**-0.5 * draw(channels, channels)
            inputs[f"{part}_weight"] = (weight.to(device, parameter_dtype)).T if transposed_weights else weight.to(device, parameter_dtype)
        for part in biases:
            inputs[f"{part}_bias"] = draw(channels).to(device, parameter_dtype)
        return inputs | {"num_heads": heads, **options}

    return Case(name, why, make, representative)


def _pooled(
    name: str,
    why: str,
    queries: int,
    keys: int,
    dim: int,
    *,
    batch: int = 2,
    heads: int = 3,
    gain: float = 1.0,
    layout: Layout | None = None,
    representative: bool = False,
    **options: Any,
) -> Case:
    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        def draw(*shape: int) -> Tensor:
            return (gain * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

        return {key: (layout or _contiguous)(draw, (batch, heads, rows, dim)) for key, rows in (("q", queries), ("k", keys), ("v", keys))} | options

    return Case(name, why, make, representative)


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


def _transposed(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, tokens, channels = shape
    return draw(tokens, batch, channels).transpose(0, 1)


def _broadcast_batch(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(1, *shape[1:]).expand(shape)


def _heads_last(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, heads, rows, dim = shape
    return draw(batch, rows, heads, dim).transpose(1, 2)


def _columns_first(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, heads, rows, dim = shape
    return draw(batch, heads, dim, rows).mT


# width and heads of CaiT's models, each head of 48 channels
_MODELS = {"cait_xxs24": (192, 4), "cait_xs24": (288, 6), "cait_s24": (384, 8), "cait_m36": (768, 16)}


def bench_cases(models: Iterable[str] = tuple(_MODELS), batch: int = 32, token_counts: Iterable[int] = (197, 577)) -> list[BenchCase]:
    """The class attention of CaiT's models at 224 and 384 pixels."""
    return [_bench_case(model, *_MODELS[model], batch, count) for model in models for count in token_counts]


def gpu_cases(op: str = "class_attention", batch: int = 256) -> list[BenchCase]:
    quarter = max(1, batch // 4)
    if op == "pooled_attention":
        return [_pooled_bench_case(*shape) for shape in ((batch, 12, 1, 196, 64), (batch, 6, 2, 198, 64), (quarter, 8, 1, 577, 48))]
    return bench_cases(("cait_s24",), batch, (197,)) + bench_cases(("cait_xxs24",), quarter, (197,)) + bench_cases(("cait_m36",), quarter, (577,))


def _pooled_bench_case(batch: int, heads: int, queries: int, keys: int, dim: int) -> BenchCase:
    name = f"b{batch}/h{heads}/m{queries}/n{keys}/d{dim}"
    case = _pooled(name, "", queries, keys, dim, batch=batch, heads=heads)
    rows, product = batch * heads * dim, 2 * batch * heads * queries * keys * dim
    return BenchCase(
        name,
        f"{queries} queries and {keys} keys of {heads} heads, {batch} images",
        case.make,
        # forward: read q, k, v, write the output; backward: read these, the output and its gradient, write three gradients
        elements={"forward": 2 * rows * (queries + keys), "backward": rows * (4 * queries + 4 * keys)},
        flops={"forward": 2 * product, "backward": 5 * product},
    )


def _bench_case(model: str, channels: int, heads: int, batch: int, tokens: int) -> BenchCase:
    name = f"{model}/{tokens}"
    case = _class(name, "", channels, heads, tokens, batch=batch)
    rows, pass_, projection = batch * tokens * channels, 2 * batch * tokens * channels * heads, 2 * batch * channels**2
    return BenchCase(
        name,
        f"{model}: {tokens} tokens of {channels} channels, {heads} heads, {batch} images",
        case.make,
        model=model,
        # forward: read the tokens and three weights; backward: read both again and write both's gradients
        elements={"forward": rows + 3 * channels**2, "backward": 2 * rows + 6 * channels**2},
        # forward: scores and mixture, and the query, direction and output of each image; backward: d_p, d_u, two terms
        # of the tokens' gradient, and six products with weights or into their gradients
        flops={"forward": 2 * pass_ + 3 * projection, "backward": 4 * pass_ + 6 * projection},
    )
