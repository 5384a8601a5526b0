"""Images a second, memory and multiplications of models, side by side."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._memory import Alive
from vtkernels.analysis._model import evaluating
from vtkernels.analysis._progress import progress
from vtkernels.analysis._result import Result
from vtkernels.models import create_model, model_config, model_info


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `throughput`.

    Attributes:
        models: names of `vtkernels.list_models()`.
        batch_size: images of a batch.
        warmup, timed: batches before the clock starts, and those it sees.
        device: where to compute; default a GPU if there is one.
        dtype: float32, bfloat16 or float16, of weights and images.
        img_size: edge of the images, if another than each model's own.
        num_classes: outputs of the models.
        out: folder for the results.
    """

    models: tuple[str, ...] = ("vit_tiny_patch4_32", "cait_xxs24_patch4_32", "nasneta_cifar")
    batch_size: int = 64
    warmup: int = 50
    timed: int = 30
    device: str | None = None
    dtype: str = "float32"
    img_size: int | None = None
    num_classes: int = 10
    out: str = "analysis"


@dataclass
class Row:
    """One model.

    Attributes:
        images_per_second: timed batches times their size over the time they took.
        slowest, fastest: images a second in the slowest and the fastest tenth of the batches; on a GPU, where batches overlap, None.
        memory: bytes at the peak of a forward pass: weights, images, and the tensors alive. On a GPU its allocator's count.
        macs: multiply-accumulates of one image, counted.
        published_gmacs: those the authors or timm give, at the variant's default image size.
    """

    name: str
    parameters: int
    images_per_second: float
    slowest: float | None
    fastest: float | None
    memory: int
    macs: int
    published_gmacs: float | None = None


@dataclass
class ThroughputResult(Result):
    name: ClassVar[str] = "throughput"
    device: str
    dtype: str
    batch_size: int
    rows: list[Row] = field(default_factory=list)

    def summary(self) -> str:
        lines = [f"{'model':30} {'images/s':>10} {'MiB':>8} {'GMACs':>8} {'parameters':>12}"]
        lines += [f"{row.name:30} {row.images_per_second:10.1f} {row.memory / 2**20:8.1f} {row.macs / 1e9:8.3f} {row.parameters:12,}" for row in self.rows]
        return "\n".join(lines)

    def draw(self) -> dict[str, Any]:
        if not self.rows:
            return {}
        rows = sorted(self.rows, key=lambda row: row.images_per_second)
        panels = {
            "Images a second": ([row.images_per_second for row in rows], "{:.0f}"),
            "Memory at the peak (MiB)": ([row.memory / 2**20 for row in rows], "{:.0f}"),
            "Multiply-accumulates of an image (M)": ([row.macs / 1e6 for row in rows], "{:.0f}"),
        }
        figure, axes = plots.subplots(1, 3, width=13.0, height=1.6 + 0.36 * len(rows), sharey=True)
        for axis, (title, (values, form)), color in zip(axes, panels.items(), plots.SERIES, strict=False):
            bars = axis.barh([row.name for row in rows], values, color=color, height=0.66)
            axis.bar_label(bars, [form.format(value) if value >= 10 else f"{value:.2g}" for value in values], padding=3)
            axis.set_title(title)
            axis.margins(x=0.18)
            axis.grid(False, axis="y")
        figure.suptitle(f"batches of {self.batch_size}, {self.dtype}, on {self.device}", fontsize=10)
        return {self.name: figure}


def run(options: Options) -> ThroughputResult:
    if not options.models:
        fail("throughput", "models", "name at least one model", "none", "vtkernels list has them")
    for name in ("batch_size", "warmup", "timed"):
        if getattr(options, name) < (name != "warmup"):
            fail("throughput", name, "be positive", getattr(options, name))
    if options.dtype not in ("float32", "bfloat16", "float16"):
        fail("throughput", "dtype", "be float32, bfloat16 or float16", repr(options.dtype))
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype)
    result = ThroughputResult(device=_device_name(device), dtype=options.dtype, batch_size=options.batch_size, complete=False)
    with progress("throughput", len(options.models)) as steps:
        for name in options.models:
            model = create_model(name, num_classes=options.num_classes, img_size=options.img_size).to(device, dtype).eval()
            images = torch.randn(options.batch_size, model.config.in_channels, *model.config.size, device=device, dtype=dtype)
            row = measure(model, images, warmup=options.warmup, timed=options.timed, name=name)
            if options.img_size is None or model.config.size == model_config(name).size:
                row.published_gmacs = model_info(name).gmacs
            result.rows.append(row)
            steps.advance(name)
    result.complete = not steps.interrupted
    return result


@torch.no_grad()
def measure(model: nn.Module, images: Tensor, *, warmup: int = 50, timed: int = 30, name: str = "model") -> Row:
    """Time a model on a batch, in eval mode, and count what it needs."""
    if images.shape[0] < 1:
        fail("throughput", "images", "be at least one", list(images.shape))
    with evaluating(model):
        macs = count_macs(model, images[:1])
        memory = peak_memory(model, images)
        for _ in range(warmup):
            model(images)
        seconds, total = _time(model, images, timed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batch, tenth = images.shape[0], max(1, timed // 10)
    slowest = batch * tenth / sum(sorted(seconds)[-tenth:]) if seconds else None
    fastest = batch * tenth / sum(sorted(seconds)[:tenth]) if seconds else None
    return Row(name, parameters, timed * batch / total, slowest, fastest, memory, macs)


def _time(model: nn.Module, images: Tensor, timed: int) -> tuple[list[float], float]:
    """Seconds of each batch, where each can be told from the next, and of all."""
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
        start = time.perf_counter()
        for _ in range(timed):
            model(images)
        torch.cuda.synchronize(images.device)
        return [], time.perf_counter() - start
    marks = [time.perf_counter()]
    for _ in range(timed):
        model(images)
        marks.append(time.perf_counter())
    return [after - before for before, after in zip(marks, marks[1:], strict=False)], marks[-1] - marks[0]


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of one image: of convolutions, matrix products and attention; not of norms and activations."""
    with torch.no_grad(), evaluating(model), _Macs() as counter:
        model(images)
    return counter.total // images.shape[0]


def peak_memory(model: nn.Module, images: Tensor) -> int:
    """Bytes at the peak of a forward pass without gradients, weights and images included."""
    with torch.no_grad(), evaluating(model):
        if images.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(images.device)
            model(images)
            torch.cuda.synchronize(images.device)
            return torch.cuda.max_memory_allocated(images.device)
        held = [*model.parameters(), *model.buffers(), images]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        with Alive(set(storages)) as alive:
            model(images)
        return sum(storages.values()) + alive.peak


class _Macs(TorchDispatchMode):
    """Adds up the formulas of torch's counter, and those of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", func)
        name = str(packet)
        if name in _MACS:
            self.total += _MACS[name](*args)
        elif packet in flop_registry:
            # two operations each
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
        return out


def _linear(x: Tensor, weight: Tensor, *_: Any) -> int:
    return x.numel() * weight.shape[0]


def _mlp(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, *_: Any) -> int:
    return x.numel() // x.shape[-1] * (w1.numel() + w2.numel())


def _window_attention(qkv: Tensor, *arguments: Any) -> int:
    batch, height, width, channels = qkv.shape
    rows, columns = next(value for value in arguments[5:] if isinstance(value, (tuple, list)))
    windows = -(-height // rows) * -(-width // columns)
    return batch * windows * 2 * (rows * columns) ** 2 * (channels // 3)


def _class_attention(tokens: Tensor, *_: Any) -> int:
    """As if keys and values were formed, which is what the model describes."""
    batch, count, channels = tokens.shape
    return batch * (channels**2 * (1 + 2 * count) + 2 * count * channels)


def _talking_heads_attention(qkv: Tensor, pre_weight: Tensor, *_: Any) -> int:
    batch, count, channels = qkv.shape
    return batch * count**2 * (2 * channels // 3 + 2 * pre_weight.numel())


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> int:
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


_MACS: dict[str, Callable[..., int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "vtkernels.class_attention": _class_attention,
    "vtkernels.linear": _linear,
    "vtkernels.mlp": _mlp,
    "vtkernels.pooled_attention": _attention,
    "vtkernels.talking_heads_attention": _talking_heads_attention,
    "vtkernels.window_attention": _window_attention,
}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


__all__ = ["Options", "Row", "ThroughputResult", "count_macs", "measure", "peak_memory", "run"]
