"""What talking-heads attention is tested with (`cases`) and timed with (`bench_cases`); each row says why it exists."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.testing import BenchCase, Case, Inputs

Layout = Callable[[Callable[..., Tensor], tuple[int, ...]], Tensor]


def cases(op: str = "talking_heads_attention") -> list[Case]:
    return [
        # published models
        _case("cait_xxs", "CaiT-XXS at 112: 4 heads of 48", 49, heads=4, head_dim=48, representative=True),
        _case("cait_xxs_224", "CaiT-XXS at 224", 196, heads=4, head_dim=48, batch=1),
        _case("cait_s_224", "CaiT-S at 224: 8 heads", 196, heads=8, head_dim=48, batch=1),
        _case("cait_m_160", "CaiT-M: 16 heads", 100, heads=16, head_dim=48, batch=1),
        _case("cait_xs_112", "CaiT-XS: 6 heads, no power of two", 49, heads=6, head_dim=48),
        # tokens
        _case("one_token", "a softmax of one number: no score has a gradient", 1, batch=3),
        _case("two_tokens", "less than any vector", 2),
        *(_case(f"tokens_{n}", "around a vector, a block of queries and two of them", n) for n in (7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129)),
        _case("tokens_300", "many blocks of queries", 300, batch=1),
        # heads
        _case("one_head", "nothing to mix but a factor", 20, heads=1),
        *(_case(f"heads_{h}", "a head count no tile divides", 19, heads=h) for h in (3, 5, 7, 9, 12, 13)),
        _case("heads_16", "the most heads the Triton kernels mix", 5, heads=16, batch=1),
        _case("heads_32", "the most heads the CPU kernels mix", 17, heads=32, batch=1),
        _case("heads_33", "more heads than the CPU kernels mix", 5, heads=33, batch=1),
        *(_case(f"head_dim_{d}", "head dimensions no vector divides", 21, head_dim=d) for d in (1, 3, 12, 20)),
        *(_case(f"head_dim_{d}", "wide heads: several register tiles", 18, head_dim=d) for d in (32, 64, 100, 256)),
        # mixing
        _case("no_biases", "both mixings without bias", 25, pre_bias=False, post_bias=False),
        _case("post_bias_only", "a bias behind the softmax alone", 25, pre_bias=False),
        _case("pre_bias_only", "a bias that the softmax cancels alone", 25, post_bias=False),
        _case("identity", "weights that leave heads apart: plain attention", 25, spread=0.0),
        _case("dense_mixing", "heads mixed beyond recognition", 25, heads=5, spread=2.0),
        _case("transposed_weights", "weights with strides of their own", 25, heads=3, transposed=True),
        _case("half_parameters", "parameters in qkv's own dtype, also where it is half", 25, same_dtype=True),
        # scores
        _case("custom_scale", "a scale that is not head_dim ** -0.5", 25, scale=0.3),
        _case("large_logits", "scores in the thousands: exponentials overflow without the maximum", 33, gain=20.0),
        _case("large_logits_four_heads", "the same where mixing adds them up", 33, heads=4, gain=12.0, spread=1.0),
        _case("half_overflow", "products beyond float16, brought back by the scale", 20, head_dim=32, gain=60.0, scale=1e-5),
        # dropout
        _case("dropout", "every backend drops the same weights", 25, dropout_p=0.25, seed=2**40 + 3, representative=True),
        _case("dropout_many_tokens", "the same across blocks", 70, heads=3, dropout_p=0.5, seed=-7),
        # memory
        _case("token_slice", "qkv is a slice of the tokens, as behind a class token", 25, layout=_slice_of_tokens),
        _case("channel_slice", "qkv is a slice of wider rows", 25, layout=_slice_of_channels),
        _case("tokens_first", "qkv is a transposed [N, B, 3C]", 25, layout=_tokens_first),
        _case("channels_first", "qkv is a transposed [B, 3C, N]: its last dimension is not dense", 25, layout=_channels_first),
        _case("broadcast_batch", "qkv is expanded: one image seen twice", 25, layout=_broadcast_batch),
        # batch
        _case("empty_batch", "no image at all", 25, batch=0, representative=True),
        _case("batch_1", "one image: threads share its queries", 70, batch=1),
        _case("batch_7", "a batch no power of two divides", 18, batch=7),
    ]  # fmt: skip


def _case(
    name: str,
    why: str,
    tokens: int,
    *,
    batch: int = 2,
    heads: int = 2,
    head_dim: int = 8,
    pre_bias: bool = True,
    post_bias: bool = True,
    spread: float = 0.4,
    gain: float = 1.0,
    layout: Layout | None = None,
    same_dtype: bool = False,
    transposed: bool = False,
    representative: bool = False,
    **options: Any,
) -> Case:
    """`spread`: of the mixing weights around the identity; `gain`: standard deviation of qkv; `options` go to the op as they are."""
    channels = heads * head_dim

    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        # float32 beside half precision, as training under autocast has it
        parameter_dtype = dtype if same_dtype else torch.promote_types(dtype, torch.float32)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def weight() -> Tensor:
            drawn = torch.eye(heads, dtype=torch.float64) + spread * draw(heads, heads)
            return drawn.T.contiguous().T if transposed else drawn

        qkv = (layout or _contiguous)(lambda *shape: (gain * draw(*shape)).to(device, dtype), (batch, tokens, 3 * channels))
        parameters = {
            "pre_weight": weight(),
            "pre_bias": draw(heads) if pre_bias else None,
            "post_weight": weight(),
            "post_bias": 0.1 * draw(heads) if post_bias else None,
        }
        placed = {key: value if value is None else value.to(device, parameter_dtype) for key, value in parameters.items()}
        return {"qkv": qkv, **placed, "num_heads": heads, **options}

    return Case(name, why, make, representative)


def _contiguous(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(*shape)


def _slice_of_tokens(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, tokens, channels3 = shape
    return draw(batch, tokens + 3, channels3)[:, 1:-2]


def _slice_of_channels(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    # an odd offset and an odd row: nothing is aligned to a register
    return draw(*shape[:2], shape[2] + 5)[..., 3:-2]


def _tokens_first(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, tokens, channels3 = shape
    return draw(tokens, batch, channels3).transpose(0, 1)


def _channels_first(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    batch, tokens, channels3 = shape
    return draw(batch, channels3, tokens).transpose(1, 2)


def _broadcast_batch(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return draw(1, *shape[1:]).expand(shape)


# model -> (channels, heads); 16 x 16 patches
_MODELS = {
    "cait_xxs24": (192, 4),
    "cait_xs24": (288, 6),
    "cait_s24": (384, 8),
    "cait_m36": (768, 16),
}


def bench_cases(models: Iterable[str] = tuple(_MODELS), batches: Iterable[int] = (8, 32), size: int = 224) -> list[BenchCase]:
    return [_bench_case(model, batch, size) for model in models for batch in batches]


def gpu_cases(op: str = "talking_heads_attention", batch: int = 128) -> list[BenchCase]:
    return bench_cases(("cait_s24", "cait_xxs24"), (batch,))


def _bench_case(model: str, batch: int, size: int) -> BenchCase:
    channels, heads = _MODELS[model]
    tokens = (size // 16) ** 2
    case = _case(f"{model}/b{batch}/n{tokens}", "", tokens, batch=batch, heads=heads, head_dim=channels // heads)
    product, mixing = 2 * tokens**2 * channels, 2 * tokens**2 * heads**2
    return BenchCase(
        case.name,
        f"a block of {model}: {tokens} tokens, {channels} channels, {heads} heads",
        case.make,
        model=model,
        # forward: read q, k, v, write the output; backward: read these and the output's gradient, write three gradients
        elements={"forward": 4 * channels * batch * tokens, "backward": 7 * channels * batch * tokens},
        # forward: scores, two mixings, product with v; backward: scores and mixings again, the mixings' and the weights'
        # gradients, and one product for each of dP, dQ, dK, dV
        flops={"forward": (2 * product + 2 * mixing) * batch, "backward": (5 * product + 6 * mixing) * batch},
    )
