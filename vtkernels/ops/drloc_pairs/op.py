"""Pairs of positions for dense relative localisation: the public function, its schema, and its place in autograd."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.op import Op, define, differentiable
from vtkernels._core.philox import draw_seed
from vtkernels.ops.drloc_pairs.common import Call, Scatter

_HERE = "vtkernels.ops.drloc_pairs"
OP = Op("drloc_pairs", {"triton": f"{_HERE}.triton", "cpu": f"{_HERE}.native", "reference": f"{_HERE}.reference"})
# dimensions of the features, by layout
_LAYOUTS = {"bhwc": (4, "[B, H, W, C]"), "bchw": (4, "[B, C, H, W]"), "bnc": (3, "[B, H * W, C]")}
_TARGETS = ("abs", "signed")


def drloc_pairs(
    features: Tensor,
    *,
    num_pairs: int = 64,
    layout: str = "bhwc",
    grid: tuple[int, int] | None = None,
    target: str = "abs",
    normalize: bool = True,
    seed: int | None = None,
    offset: int = 0,
    positions: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of positions of each image, their features side by side, and how far apart they lie: what dense relative localisation learns from.

    Drawing, gathering, concatenating and the targets are one kernel on the features' device, which the host does not
    wait for. Each image has pairs of its own; both positions are uniform on the grid, with replacement, so a position
    may be paired with itself. The gradient reaches `features` and is bitwise repeatable.

    Args:
        features: the map in `layout`; any strides, but channels that lie side by side are read fastest.
        num_pairs: pairs of an image, m.
        layout: bhwc, bchw, or bnc with `grid`.
        grid: (H, W) of the tokens of layout bnc, which are in row-major order.
        target: abs, or signed (first minus second).
        normalize: divide the rows' distance by H and the columns' by W, as the paper does; else count positions.
        seed: of the draw; the same seed and offset draw the same pairs on every backend. Default: drawn from torch.
        offset: another draw of the same seed.
        positions: [B, m, 4] integers (row, column, row, column) to take instead of drawing any; num_pairs is then their m.
            On the CPU those outside the grid are refused. A GPU does not tell in time: there they are moved to the nearest edge.
        backend: auto, triton, cpu or reference.

    Returns:
        features of the pairs [B, m, 2C]; targets [B, m, 2] (rows, columns) in float32; positions [B, m, 4] in int64
    """
    return torch.ops.vtkernels.drloc_pairs.default(*_prepare(features, num_pairs, layout, grid, target, normalize, seed, offset, positions, backend))


def _prepare(features, num_pairs, layout, grid, target, normalize, seed, offset, positions, backend) -> tuple[Any, ...]:
    """The op's arguments from those of the public function: checked, defaults filled in, features seen as [B, H, W, C]."""
    features = as_map(features, layout, grid)
    name, (batch, height, width, channels) = OP.name, features.shape
    if height < 1 or width < 1 or channels < 1:
        check.fail(name, "the map", "have at least one row, column and channel", f"{height} x {width} of {channels} channels", "only the batch may be empty")
    if positions is not None:
        check.check_tensor(name, "positions", positions, 3, "[B, m, 4]")
        if positions.dtype not in (torch.int64, torch.int32):
            check.fail(name, "positions", "have dtype int64 or int32", positions.dtype, "try positions.long()", TypeError)
        if positions.device != features.device:
            check.fail(name, "positions", f"be on the device of features ({features.device})", positions.device, "try positions.to(features.device)")
        num_pairs = positions.shape[1]
        check.check_shape(name, "positions", positions, (batch, num_pairs, 4), "one row of (row, column, row, column) for each pair of each image")
        positions = positions.long()
    if not isinstance(num_pairs, (int, torch.SymInt)) or isinstance(num_pairs, bool):
        check.fail(name, "num_pairs", "be an int", repr(num_pairs), "the paper uses 64", TypeError)
    if num_pairs < 1:
        check.fail(name, "the number of pairs", "be at least 1", num_pairs, "the paper uses 64")
    if num_pairs >= 2**31:
        check.fail(name, "the number of pairs", "be below 2 ** 31", num_pairs, "the paper uses 64")
    check.check_bool(name, "normalize", normalize)
    if target not in _TARGETS:
        check.fail(name, "target", f"be one of {', '.join(_TARGETS)}", repr(target), "the paper uses abs")
    check.check_seed(name, seed)
    OP.check_name(backend)
    if offset is None:
        check.fail(name, "offset", "be an int", offset, "0 is the first draw of a seed", TypeError)
    check.check_seed(name, offset, "offset")
    if seed is None:
        seed = draw_seed() if positions is None else 0
    return features, positions, num_pairs, target == "signed", normalize, seed, offset, backend


def as_map(features: Any, layout: str, grid: Any) -> Tensor:
    """The features as [B, H, W, C], without a copy."""
    name = OP.name
    if layout not in tuple(_LAYOUTS):
        check.fail(name, "layout", f"be one of {', '.join(_LAYOUTS)}", repr(layout), "bhwc has the channels last")
    check.check_tensor(name, "features", features, *_LAYOUTS[layout])
    check.check_floating(name, "features", features)
    if layout != "bnc":
        if grid is not None:
            check.fail(name, "grid", f"be left out for layout {layout}", grid, "it tells the rows and columns of layout bnc")
        return features if layout == "bhwc" else features.permute(0, 2, 3, 1)
    if grid is None:
        check.fail(name, "grid", "be given for layout bnc", None, f"the {features.shape[1]} tokens could be any H x W; leave out a class token")
    height, width = check.pair(name, "grid", grid)
    if height < 1 or width < 1 or height * width != features.shape[1]:
        check.fail(name, "grid", f"have as many positions as features has tokens ({features.shape[1]})", f"{height} x {width}", "leave out a class token")
    return features.unflatten(1, (height, width))


_COMMON = "Tensor features, Tensor? positions, SymInt num_pairs, bool signed, bool normalize, SymInt seed, SymInt offset"


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*args[:-1])
    if call.positions is not None and call.positions.device.type == "cpu":
        _refuse_outside(call)
    return OP.select("forward", args[-1], call)(call)


def _refuse_outside(call: Call) -> None:
    _, height, width, _ = call.features.shape
    size = torch.tensor([height, width, height, width], device="cpu")
    outside = (call.positions < 0) | (call.positions >= size)
    if outside.any():
        image, pair, _ = outside.nonzero()[0].tolist()
        got = f"{call.positions[image, pair].tolist()} for pair {pair} of image {image}"
        check.fail(OP.name, "positions", f"lie on the {height} x {width} grid", got, "they are (row, column, row, column), counted from 0")


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*args[:-1])
    batch, _, _, channels = call.features.shape

    def new(last: int, dtype: torch.dtype) -> Tensor:
        return call.features.new_empty((batch, call.num_pairs, last), dtype=dtype)

    return new(2 * channels, call.features.dtype), new(2, call.target_dtype), new(4, torch.int64)


def _backward(*args: Any) -> Tensor:
    call = Scatter(*args[:-1])
    return OP.select("backward", args[-1], call)(call)


def _backward_fake(*args: Any) -> Tensor:
    call = Scatter(*args[:-1])
    return call.grad_pairs.new_empty(call.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, targets, positions = output
    ctx.save_for_backward(positions)
    ctx.rest = *inputs[0].shape[1:3], inputs[-1]
    ctx.mark_non_differentiable(targets, positions)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_pairs: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 7
    if grad_pairs is None:
        return None, *nothing
    return torch.ops.vtkernels.drloc_pairs_backward.default(grad_pairs, *ctx.saved_tensors, *ctx.rest), *nothing


def _save_again(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.backend = inputs[-1]
    ctx.set_materialize_grads(False)


def _differentiate_again(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    """The transpose of putting rows back is to gather them: the op itself, for positions that are known."""
    nothing = (None,) * 4
    if grad is None:
        return None, *nothing
    (positions,) = ctx.saved_tensors
    pairs, _, _ = torch.ops.vtkernels.drloc_pairs.default(grad, positions, positions.shape[1], False, False, 0, 0, ctx.backend)
    return pairs, *nothing


define(f"drloc_pairs({_COMMON}, str backend) -> (Tensor, Tensor, Tensor)", _forward, _forward_fake)
define("drloc_pairs_backward(Tensor grad_pairs, Tensor positions, SymInt height, SymInt width, str backend) -> Tensor", _backward, _backward_fake)
differentiable("drloc_pairs", _save, _differentiate)
differentiable("drloc_pairs_backward", _save_again, _differentiate_again)


def _example(device: torch.device) -> dict[str, Any]:
    """Swin-T's last stage."""
    return {"features": torch.zeros(1, 7, 7, 768, device=device)}


# the seed changes no backend's answer: given, none is drawn from the caller's generator
OP.explains(drloc_pairs, lambda **arguments: Call(*_prepare(**arguments | {"seed": arguments["seed"] or 0})[:-1]), _example)
