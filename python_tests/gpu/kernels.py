"""The kernel builds that the static gate holds: each with its name, its architecture, and whether the default run builds it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from python_tests.gpu import aot
from vtkernels.ops.class_attention import triton as class_backend
from vtkernels.ops.class_attention.common import Call as ClassCall
from vtkernels.ops.class_attention.common import PooledCall
from vtkernels.ops.drloc_pairs import common as drloc
from vtkernels.ops.drloc_pairs import triton as drloc_backend
from vtkernels.ops.jsd import triton as jsd
from vtkernels.ops.jsd.common import Call as JsdCall
from vtkernels.ops.sam import triton as sam
from vtkernels.ops.sam.common import AdamWStep, Perturb, Restore, SgdStep
from vtkernels.ops.talking_heads_attention import triton as talking_heads
from vtkernels.ops.talking_heads_attention.common import Call as TalkingHeadsCall
from vtkernels.ops.window_attention import triton as backend
from vtkernels.ops.window_attention.common import Call

ARCHITECTURES = (80, 90, 100)
# Kernels of window attention that reach for spilled registers in their loop, and where, under one Triton at least: their budgets hold how often
SPILLING = {
    "small_bwd float32 7x7 d32": (80, 90, 100),
    "small_bwd bfloat16 8x8 d32 cosine": (100,),
    "small_bwd bfloat16 7x7 d32 dropout": (90, 100),
    "small_fwd bfloat16 7x7 d32 dropout": (100,),
    "small_bwd bfloat16 7x7 d32 padded": (100,),
    "rows_fwd bfloat16 12x12 d32": (100,),
}


@dataclass(frozen=True)
class Work:
    """What a kernel of window attention does for one window and head, which tells instructions from a loop's length."""

    iterations: int  # of the loop that holds the products
    exponentials: int  # of one iteration, where pipelining may put several into the loop's body
    moved: int  # bytes that must come from memory or go there, in the whole phase


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
    work: Work | None = None


def cases() -> Iterator[Case]:
    yield from _window_attention()
    yield from _sam()
    yield from _jsd()
    yield from _drloc_pairs()
    yield from _class_attention()
    yield from _talking_heads()


def _window_attention() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = f"{str(dtype).removeprefix('torch.')} 7x7 d32"
        for arch in ARCHITECTURES:
            quick = dtype == torch.bfloat16 or arch == 90
            yield from _of(name, arch, window_call(dtype), quick=quick, strict=True)
    for window, size in ((12, 96), (16, 64), (24, 48)):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            name, half = f"{str(dtype).removeprefix('torch.')} {window}x{window} d32", dtype != torch.float32
            for arch in ARCHITECTURES if dtype == torch.bfloat16 or window == 12 and not half else (90,):
                quick = arch == 90 and dtype == torch.bfloat16 and window == 12
                yield from _of(name, arch, window_call(dtype, window, size=size), quick=quick, strict=True)
    for arch in ARCHITECTURES:
        yield from _of("bfloat16 16x16 d32 cosine", arch, window_call(torch.bfloat16, window=16, size=64, cosine=True), strict=True)
        yield from _of("bfloat16 8x8 d32 cosine", arch, window_call(torch.bfloat16, window=8, size=64, cosine=True), strict=True)
        yield from _of("bfloat16 7x7 d32 dropout", arch, window_call(torch.bfloat16, dropout_p=0.1), strict=True)
        yield from _of("bfloat16 16x16 d32 dropout", arch, window_call(torch.bfloat16, window=16, size=64, dropout_p=0.1), strict=True)
        yield from _of("bfloat16 8x8 d32", arch, window_call(torch.bfloat16, window=8, size=64), strict=True)
        yield from _of("bfloat16 7x7 d32 padded", arch, window_call(torch.bfloat16, size=50, qkv_bias=True), strict=True)
        yield from _of("bfloat16 7x7 d32 dense", arch, window_call(torch.bfloat16, bias="dense"), strict=True)
    yield from _of("bfloat16 4x4 d32", 90, window_call(torch.bfloat16, window=4), strict=False)
    yield from _of("bfloat16 7x7 d16", 90, window_call(torch.bfloat16, head_dim=16), strict=False)
    yield from _of("bfloat16 7x7 d64", 90, window_call(torch.bfloat16, head_dim=64), strict=False)
    yield from _of("bfloat16 24x24 d32 cosine", 90, window_call(torch.bfloat16, window=24, size=48, cosine=True), strict=True)
    yield from _of("bfloat16 12x12 d64", 90, window_call(torch.bfloat16, window=12, head_dim=64, size=96), strict=True)


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
    dropout_p: float = 0.0,
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
        dropout_p=dropout_p,
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
            wide_rows = build.arguments.get("ROWS", 64) == 64
            held = strict and arch not in SPILLING.get(f"{kernel} {name}", ())
            yield Case(f"{kernel} {name} sm_{arch}", arch, build, quick, held, wide_rows=wide_rows, work=_work(kernel, call, build.arguments))


def _work(kernel: str, call: Call, arguments: dict) -> Work:
    bytes_of_row = call.head_dim * call.qkv.element_size()
    # the forward reads q, k and v and writes the output; the backward reads these and its gradient, and writes three
    moved = (4 if kernel.endswith("fwd") else 7) * call.tokens * bytes_of_row
    if "BLOCK_N" in arguments:
        return Work(1, arguments["BLOCK_N"] ** 2, moved)
    row_tiles, column_tiles = (-(-call.tokens // arguments[edge]) for edge in ("ROWS", "COLUMNS"))
    if "REST" in arguments:
        return Work(row_tiles, arguments["ROWS"] * (arguments["COLUMNS"] + arguments["REST"]), moved)
    return Work(row_tiles * column_tiles, 0, moved)


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


def _jsd() -> Iterator[Case]:
    for arch in ARCHITECTURES:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            yield from _of_jsd(f"{name} 1000", arch, jsd_call(dtype, 1000), quick=arch == 90)
            # rows of this many start at a multiple of 16 bytes, those of ImageNet-21k's 21841 do not
            yield from _of_jsd(f"{name} 21848", arch, jsd_call(dtype, 21848))
        yield from _of_jsd("float32 1000 soft", arch, jsd_call(torch.float32, 1000, soft=True))
    yield from _of_jsd("bfloat16 10", 90, jsd_call(torch.bfloat16, 10), strict=False)
    yield from _of_jsd("bfloat16 21841", 90, jsd_call(torch.bfloat16, 21841), strict=False)
    yield from _of_jsd("bfloat16 1000 5 views", 90, jsd_call(torch.bfloat16, 1000, views=5))


def jsd_call(dtype: torch.dtype, classes: int, views: int = 3, batch: int = 1024, soft: bool = False) -> JsdCall:
    """An AugMix loss on tensors without memory."""
    target = torch.empty((batch, classes) if soft else (batch,), dtype=torch.float32 if soft else torch.int64, device="meta")
    return JsdCall(torch.empty(views * batch, classes, dtype=dtype, device="meta"), target, views, (1 / views,) * views, 12.0, 0.1, "batchmean")


def jsd_launches(call: JsdCall) -> list[aot.Build]:
    """The kernels of one training step: the loss, then the gradient."""

    def step() -> None:
        jsd.forward(call, False)
        jsd.backward(call, torch.empty((), device="meta"))

    return aot.builds(step)


def _of_jsd(name: str, arch: int, call: JsdCall, strict: bool = True, quick: bool = False) -> Iterator[Case]:
    for build, what in zip(jsd_launches(call), ("loss", "gradient"), strict=True):
        kernel = build.kernel.__name__.removesuffix("_kernel")
        yield Case(f"{kernel} {what} {name} sm_{arch}", arch, build, quick, strict, products=False)


def _drloc_pairs() -> Iterator[Case]:
    """Both phases on Swin's last stage, with pairs drawn and with pairs given."""
    for dtype in (torch.float32, torch.bfloat16):
        for arch in ARCHITECTURES:
            name = f"{str(dtype).removeprefix('torch.')} c768"
            yield from _drloc_of(name, arch, dtype, False, quick=arch == 90)
            if dtype == torch.bfloat16:
                yield from _drloc_of(f"{name} given", arch, dtype, True, quick=False)


def _drloc_of(name: str, arch: int, dtype: torch.dtype, given: bool, quick: bool) -> Iterator[Case]:
    features = torch.empty(128, 7, 7, 768, dtype=dtype, device="meta")
    positions = torch.empty(128, 64, 4, dtype=torch.int64, device="meta") if given else None

    def step() -> None:
        pairs, _, found = drloc_backend.forward(drloc.Call(features, positions, 64, False, True, 2**40, 0))
        drloc_backend.backward(drloc.Scatter(torch.empty_like(pairs), found, 7, 7))

    for build in aot.builds(step):
        kernel = build.kernel.__name__.removesuffix("_kernel")
        if not (given and kernel.endswith("bwd")):
            yield Case(f"{kernel} {name} sm_{arch}", arch, build, quick, strict=True, products=False)


def _class_attention() -> Iterator[Case]:
    """CaiT's class attention, and pooled attention with one query."""
    for arch in ARCHITECTURES:
        yield from _class_of("bfloat16 384x8", arch, class_call(torch.bfloat16), quick=arch == 90)
        yield from _pooled_of("bfloat16 d64", arch, torch.bfloat16, quick=arch == 90)
        yield from _class_of("bfloat16 192x4", arch, class_call(torch.bfloat16, channels=192, heads=4))
        yield from _class_of("bfloat16 768x16", arch, class_call(torch.bfloat16, channels=768, heads=16, tokens=577))
    yield from _class_of("bfloat16 384x8 dropout", 90, class_call(torch.bfloat16, dropout_p=0.1))
    yield from _class_of("float32 384x8", 90, class_call(torch.float32))
    yield from _pooled_of("float32 d64", 90, torch.float32)


def class_call(dtype: torch.dtype, channels: int = 384, heads: int = 8, tokens: int = 197, dropout_p: float = 0.0) -> ClassCall:
    """CaiT-S24's class attention, or a variation of it, on tensors without memory."""

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    weights, biases = (new(channels, channels) for _ in range(3)), (new(channels) for _ in range(3))
    return ClassCall(new(128, tokens, channels, dtype=dtype), *weights, *biases, heads, 48**-0.5, dropout_p, 0)


def _class_of(name: str, arch: int, call: ClassCall, quick: bool = False) -> Iterator[Case]:
    def step() -> None:
        out, *saved = class_backend.forward(call)
        class_backend.backward(call, torch.empty_like(out), *saved)

    yield from _once_each(name, arch, aot.builds(step), quick)


def _pooled_of(name: str, arch: int, dtype: torch.dtype, quick: bool = False) -> Iterator[Case]:
    def step() -> None:
        q, k, v = (torch.empty(128, 12, rows, 64, dtype=dtype, device="meta") for rows in (1, 196, 196))
        call = PooledCall(q, k, v, 0.125, 0.0, 0)
        out, statistics = class_backend.pooled_forward(call)
        class_backend.pooled_backward(call, torch.empty_like(out), out, statistics)

    yield from _once_each(name, arch, aot.builds(step), quick)


def _once_each(name: str, arch: int, builds: list[aot.Build], quick: bool) -> Iterator[Case]:
    """The forward and the backward share kernels. Few heads or queries make tiles that an architecture's newest tensor cores do not take."""
    for kernel, build in {build.kernel.__name__.removesuffix("_kernel"): build for build in builds}.items():
        yield Case(f"{kernel} {name} sm_{arch}", arch, build, quick, strict=True, products=False)
