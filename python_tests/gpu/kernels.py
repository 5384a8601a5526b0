"""The kernel builds that the static gate holds: each with its name, its architecture, and whether the default run builds it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from python_tests.gpu import aot
from vtkernels.ops.window_attention import triton as backend
from vtkernels.ops.window_attention.common import Call

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Case:
    name: str
    arch: int
    kernel: aot.Build
    quick: bool
    strict: bool  # no spills in the loop, tensor cores, 16-byte accesses: the bar of small windows at head dimension 32


def cases() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        half = dtype != torch.float32
        name = f"{str(dtype).removeprefix('torch.')} 7x7 d32"
        for arch in ARCHITECTURES:
            quick = dtype == torch.bfloat16 or arch == 90
            yield from _of(name, arch, window_call(dtype), quick=quick, strict=half)
    for arch in ARCHITECTURES:
        yield from _of("bfloat16 8x8 d32", arch, window_call(torch.bfloat16, window=8, size=64), strict=True)
        yield from _of("bfloat16 7x7 d32 padded", arch, window_call(torch.bfloat16, size=50, qkv_bias=True), strict=False)
        yield from _of("bfloat16 7x7 d32 dense", arch, window_call(torch.bfloat16, bias="dense"), strict=True)
        yield from _of("bfloat16 12x12 d32", arch, window_call(torch.bfloat16, window=12, size=96), strict=False)
    yield from _of("bfloat16 24x24 d32 cosine", 90, window_call(torch.bfloat16, window=24, size=48, cosine=True), strict=False)
    yield from _of("float32 12x12 d32", 90, window_call(torch.float32, window=12, size=96), strict=False)
    yield from _of("bfloat16 4x4 d32", 90, window_call(torch.bfloat16, window=4), strict=False)
    yield from _of("bfloat16 7x7 d16", 90, window_call(torch.bfloat16, head_dim=16), strict=False)
    yield from _of("bfloat16 7x7 d64", 90, window_call(torch.bfloat16, head_dim=64), strict=False)
    yield from _of("bfloat16 8x8 d32 cosine", 90, window_call(torch.bfloat16, window=8, size=64, cosine=True), strict=False)


def window_call(
    dtype: torch.dtype,
    window: int = 7,
    head_dim: int = 32,
    size: int = 56,
    bias: str = "table",
    cosine: bool = False,
    qkv_bias: bool = False,
    heads: int = 4,
    batch: int = 128,
) -> Call:
    """A call of Swin-B's first stage, or a variation of it, on tensors without memory."""

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tokens, channels = window**2, heads * head_dim
    return Call(
        qkv=new(batch, size, size, 3 * channels, dtype=dtype),
        bias_table=new((2 * window - 1) ** 2, heads) if bias == "table" else None,
        bias=new(heads, tokens, tokens) if bias == "dense" else None,
        logit_scale=new(heads) if cosine else None,
        qkv_bias=new(3 * channels) if qkv_bias else None,
        num_heads=heads,
        window=(window, window),
        shift=(window // 2, window // 2),
        scale=head_dim**-0.5,
        mask_padding=False,
        shift_first=False,
        dropout_p=0.0,
        seed=0,
    )


def launches(call: Call, **plans: backend.Plan) -> list[aot.Build]:
    """The kernels of one training step. `forward` and `backward` replace the plan of their phase."""

    def step() -> None:
        out, statistics = backend.forward(call, plans.get("forward"))
        backend.backward(call, torch.empty_like(out), out, statistics, plans.get("backward"))

    return aot.builds(step)


def _of(name: str, arch: int, call: Call, strict: bool, quick: bool = False) -> Iterator[Case]:
    for build in launches(call):
        kernel = build.kernel.__name__.removeprefix("_").removeprefix("window_attention_").removesuffix("_kernel")
        if kernel != "fold_bias":
            yield Case(f"{kernel} {name} sm_{arch}", arch, build, quick, strict)
