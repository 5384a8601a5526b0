"""A whole model, and the ways to run it: as ours, accelerated, and as timm has it, eager or compiled. Each must be right before it is timed."""

import contextlib
import copy
import ctypes
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timing
import torch
from attn_sides import MEDIUM, OURS
from torch import Tensor, nn
from torch.nn import functional as F

import vtkernels as vt
from vtkernels._core.testing import FORWARD_FACTOR, GRADIENT_FACTOR

ACCELERATED = "accelerated"
PEERS = ("timm", "timm_compiled")
SIDES = (OURS, ACCELERATED, *PEERS)
PHASES = ("inference", "training")
CLASSES = 1000
# a tensor's gradient is compared on its own scale, but on no smaller one than this share of all gradients' size
FLOOR = 1e-3


class Wrong(Exception):
    """What a side computes is not what the model is."""


class Problem:
    """A timm model with its weights, images, and what both come to in float64."""

    def __init__(self, name: str, dtype: torch.dtype, batch: int, device: str):
        self.name, self.dtype, self.device = name, dtype, device
        torch.manual_seed(0)
        self.timm = timm_model(name).to(device)
        with torch.no_grad():
            # fresh models have zeros and 1e-5 in places, behind which errors would hide
            for path, parameter in self.timm.named_parameters():
                if re.search(r"gamma|norm|bias", path):
                    parameter.add_(0.1 * torch.randn_like(parameter))
        size = self.timm.pretrained_cfg["input_size"] if self.timm.pretrained_cfg.get("input_size") else (3, 224, 224)
        self.images = torch.randn(batch, *size, device=device)
        self.labels = torch.randint(CLASSES, (batch,), device=device)
        self.truth = self.outcome(copy.deepcopy(self.timm).double(), torch.float64)
        self.yardstick = self.errors(self.outcome(copy.deepcopy(self.timm), dtype))

    def autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device, self.dtype)

    def loss(self, model: nn.Module) -> Tensor:
        with self.autocast():
            logits = model(self.images)
        return F.cross_entropy(logits.float(), self.labels)

    def outcome(self, model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        """The logits, and the gradients by the parameters' names."""
        model.eval()
        context = contextlib.nullcontext() if dtype == torch.float64 else self.autocast()
        with context:
            logits = model(self.images.to(dtype) if dtype == torch.float64 else self.images)
        wide = logits if dtype == torch.float64 else logits.float()
        F.cross_entropy(wide, self.labels).backward()
        grads = {path.removeprefix("_orig_mod."): parameter.grad for path, parameter in model.named_parameters() if parameter.grad is not None}
        model.zero_grad()
        return {"logits": logits.detach()} | grads

    def errors(self, found: dict[str, Tensor]) -> dict[str, float]:
        """Of the logits, and of the worst tensor's gradient, relative."""
        truth = self.truth
        names = [name for name in truth if name != "logits"]
        whole = torch.stack([truth[name].norm() for name in names]).norm().item()
        worst = 0.0
        for name in names:
            # a bias that the softmax cancels may have no gradient at all
            grad = found.get(name, torch.zeros_like(truth[name])).double()
            worst = max(worst, ((grad - truth[name]).norm() / max(truth[name].norm().item(), FLOOR * whole)).item())
        logits = (found["logits"].double() - truth["logits"]).abs().max() / truth["logits"].abs().max()
        return {"logits": logits.item(), "gradients": worst}

    def check(self, model: nn.Module) -> dict[str, float]:
        errors = self.errors(self.outcome(model, self.dtype))
        eps = torch.finfo(self.dtype).eps
        for what, factor in (("logits", FORWARD_FACTOR), ("gradients", GRADIENT_FACTOR)):
            allowed = factor * (self.yardstick[what] + eps)
            if not errors[what] <= allowed:
                raise Wrong(f"{what} are off by {errors[what]:.1e}, allowed are {allowed:.1e}")
        return errors


def timm_model(name: str) -> nn.Module:
    with _torchvision_without_its_extension():
        import timm
    return timm.create_model(name, num_classes=CLASSES, drop_path_rate=0.0)


@contextlib.contextmanager
def _torchvision_without_its_extension() -> Iterator[None]:
    """timm imports torchvision, whose C++ part may have been built for another torch; no model needs it."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    yield


_kept: list[torch.library.Library] = []


def build(problem: Problem, side: str) -> nn.Module:
    """The side's own model with the problem's weights."""
    if side == OURS:
        model = vt.create_model(problem.name, num_classes=CLASSES, drop_path=0.0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.pth"
            torch.save(problem.timm.state_dict(), path)
            vt.load_checkpoint(model, path)
        return model.to(problem.device)
    model = copy.deepcopy(problem.timm)
    if side == ACCELERATED:
        return vt.accelerate(model)
    return torch.compile(model, dynamic=False) if side == "timm_compiled" else model


def steps(problem: Problem, model: nn.Module) -> dict[str, Callable[[], Any]]:
    """What is timed, by phase. A rate of 0: all of AdamW's work, and weights that stay what the gate saw."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.05, fused=True)

    def infer() -> None:
        with torch.no_grad(), problem.autocast():
            model(problem.images)

    def train() -> None:
        optimizer.zero_grad()
        problem.loss(model).backward()
        optimizer.step()

    return {"inference": infer, "training": train}


@dataclass
class Admitted:
    """The models that are right, with the precision of their products and their errors; and why the others are not timed."""

    models: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def gate(problem: Problem, wanted: list[str], medium: bool) -> Admitted:
    admitted = Admitted()
    for side in wanted:
        for name, precision in ((side, "highest"), (side + MEDIUM, "medium")):
            if precision == "medium" and not (medium and side in PEERS):
                continue
            try:
                with _setting(precision):
                    model = build(problem, side)
                    admitted.errors[name] = problem.check(model)
            except Exception as error:  # whatever stops a side must not stop the benchmark, and must be shown
                admitted.refused[name] = _first_line(error)
            else:
                admitted.models[name] = model, precision
    return admitted


def sides(problem: Problem, admitted: Admitted, phase: str) -> list[timing.Side]:
    """What is timed in a phase; each has run once, as it may have to be compiled."""
    found = []
    for name, (model, precision) in admitted.models.items():
        run = steps(problem, model.train(phase == "training"))[phase]
        try:
            with _setting(precision):
                run()
        except Exception as error:  # as above
            admitted.refused[f"{name}, {phase}"] = _first_line(error)
        else:
            found.append(timing.Side(name, run, lambda precision=precision: _setting(precision)))
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextlib.contextmanager
def _setting(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_memory(side: timing.Side, device: str) -> int | None:
    """Bytes in use at most during a step beyond those before it; on a CPU of the whole process, whoever allocates them."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with side.context():
            side.run()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return None
    # give back what others left free, then let the kernel count its highest mark anew
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    with side.context():
        side.run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) << 10
