"""The kernel builds that the static gate holds: each with its name, its architecture, and whether the default run builds it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from python_tests.gpu import aot
from vtkernels.ops.sam import triton as sam
from vtkernels.ops.sam.common import AdamWStep, Perturb, Restore, SgdStep
from vtkernels.ops.talking_heads_attention import triton as talking_heads
from vtkernels.ops.talking_heads_attention.common import Call as TalkingHeadsCall
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
    products: bool = True  # whether there is anything to multiply on tensor cores
    wide_rows: bool = True  # whether they can be the newest ones, which want 64 rows
    stores_rows: bool = True  # or only sums


def cases() -> Iterator[Case]:
    yield from _window_attention()
    yield from _sam()
    yield from _talking_heads()


def _window_attention() -> Iterator[Case]:
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


def _talking_heads() -> Iterator[Case]:
    for heads, dtype in ((4, torch.bfloat16), (4, torch.float16), (4, torch.float32), (8, torch.bfloat16)):
        for arch in ARCHITECTURES:
            for build in talking_heads_launches(heads, dtype):
                kernel = build.kernel.__name__.removesuffix("_kernel") + "_keys" * build.arguments.get("KEYS", False)
                name = f"{kernel} {str(dtype).removeprefix('torch.')} h{heads} d48 sm_{arch}"
                # eight heads' accumulators beside all heads' scores are as much as there is room for, give or take a register
                strict = dtype != torch.float32 and (heads == 4 or "fwd" not in kernel and "product" not in kernel)
                sums_only = "row" in kernel or "mixing" in kernel
                yield Case(name, arch, build, heads == 4 and dtype == torch.bfloat16, strict, wide_rows=False, stores_rows=not sums_only)


def talking_heads_launches(heads: int, dtype: torch.dtype, batch: int = 128, tokens: int = 196, head_dim: int = 48) -> list[aot.Build]:
    """The kernels of one training step of a CaiT block at 224, on tensors without memory."""

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    parameters = new(heads, heads), new(heads), new(heads, heads), new(heads)
    call = TalkingHeadsCall(new(batch, tokens, 3 * heads * head_dim, dtype=dtype), *parameters, heads, head_dim**-0.5, 0.0, 0)
    return aot.builds(lambda: talking_heads.backward(call, torch.empty_like(talking_heads.forward(call))))


def _sam() -> Iterator[Case]:
    kinds = {"float32": [torch.float32], "bfloat16": [torch.bfloat16], "mixed": [torch.float32, torch.bfloat16, torch.float16]}
    for arch in ARCHITECTURES:
        for name, dtypes in kinds.items():
            for build in sam_launches(dtypes):
                kernel = build.kernel.__name__.removesuffix("_kernel")
                # these two touch a few numbers, and no tensor's dtype
                scalar = kernel in ("sam_finish", "adamw_corrections")
                if name == "float32" or not scalar:
                    yield Case(f"{kernel} {name} sm_{arch}", arch, build, name != "bfloat16" and arch == 90, name != "mixed" and not scalar, products=False)
        for build in aot.builds(lambda: sam.perturb(perturb_call([torch.float32] * 2, adaptive=[True, False]))):
            if "finish" not in build.kernel.__name__:
                yield Case(f"{build.kernel.__name__.removesuffix('_kernel')} float32 adaptive sm_{arch}", arch, build, False, True, products=False)


def sam_launches(dtypes: list[torch.dtype]) -> list[aot.Build]:
    """The kernels of a SAM step with SGD, and with AdamW, on tensors of these dtypes, each once."""
    lists, flag, numbers = _lists(dtypes, 6), torch.empty((), device="meta"), [0.1] * len(dtypes)
    params, grads, backups, *state = lists
    steps = [flag] * len(dtypes)

    def step() -> None:
        sam.perturb(perturb_call(dtypes, adaptive=[False] * len(dtypes)))
        sam.restore(Restore(params, backups))
        sam.sgd(SgdStep(params, grads, state[0], backups, numbers, numbers, 0.9, True, False, False, flag, flag))
        sam.adamw(AdamWStep(params, grads, state[0], state[1], steps, backups, numbers, numbers, 0.9, 0.999, 1e-8, True, False, flag, flag))

    return aot.builds(step)


def perturb_call(dtypes: list[torch.dtype], adaptive: list[bool]) -> Perturb:
    params, grads, backups = _lists(dtypes, 3)
    flag = torch.empty((), device="meta")
    return Perturb(params, grads, backups, None, [0.05] * len(dtypes), adaptive, 0.01, 1e-12, flag, flag)


def _lists(dtypes: list[torch.dtype], count: int) -> list[list[Tensor]]:
    return [[torch.empty(1000, 1000, dtype=dtype, device="meta") for dtype in dtypes] for _ in range(count)]
