"""What the multi-tensor ops are tested with; each row says why it exists.

Steps are large against the weights (rho grows with the number of elements), so that an error in a step shows beside them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.testing import BenchCase, Case, Inputs

Shape = tuple[int, ...]
Layout = Callable[[str, list[Tensor]], list[Tensor]]
Dtypes = Callable[[torch.dtype], Sequence[torch.dtype]]

# sizes as a network has them, and the odd ones
SHAPES: tuple[Shape, ...] = ((3, 5), (0,), (), (1,), (7,), (2, 0, 3), (4, 3, 2, 2), (33, 9))
_FLAGS = {"grad_scale": torch.float32, "found_inf": torch.float32, "square_sum": torch.float64}
_FIXED = (*_FLAGS, "steps")


def cases(op: str) -> list[Case]:
    return [*_sizes_and_memory(op), *_OWN[op](op)]


def _sizes_and_memory(op: str) -> Iterable[Case]:
    """What holds for every op of the folder."""
    yield _case(op, "mixed", "matrices, vectors, a scalar and tensors without elements side by side", representative=True)
    yield _case(op, "one_element", "a single number", [(1,)])
    yield _case(op, "scalar", "a single number without dimensions", [()])
    yield _case(op, "no_elements", "nothing at all to do, and a norm of 0", [(0,), (2, 0)])
    yield _case(op, "vector_edges", "sizes around a register, tails of every kind", [(n,) for n in (3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)])
    yield _case(op, "chunk_edges", "sizes around a block of work", [(4095,), (4096,), (4097,), (64, 64)])
    yield _case(op, "large", "several blocks of work and a tail of three", [(65536 + 3,), (5,), (65535,)])
    yield _case(op, "many", "more tensors than a small table of pointers holds", [(1 + i % 5,) for i in range(300)])
    yield _case(op, "flat_views", "views into one buffer at odd offsets: no alignment, and neighbours that must not be touched", layout=_flat_views)
    yield _case(op, "transposed", "all tensors of a parameter alike, but not row by row", layout=_transposed, representative=True)
    yield _case(op, "channels_last", "convolutions as memory_format=channels_last keeps them", [(4, 3, 2, 2), (8, 5, 3, 3), (6,)], layout=_channels_last)
    yield _case(op, "gaps", "parameters that are every other column of something", layout=_gaps)
    yield _case(op, "companions_laid_out_otherwise", "what lies beside a transposed parameter is not transposed", layout=_only("params", _transposed))
    yield _case(op, "mixed_dtypes", "one list with every dtype", dtypes=lambda d: (d, torch.float32, torch.bfloat16, torch.float16), representative=True)
    if "grads" not in _ROLES[op]:
        return
    yield _case(op, "gradients_laid_out_otherwise", "autograd may give a gradient other strides than its parameter", layout=_only("grads", _transposed))
    yield _case(op, "gradients_with_gaps", "gradients that are every other column of something", layout=_only("grads", _gaps))
    yield _case(op, "expanded_gradients", "the gradient of a sum: one number, strides of 0", layout=_expanded_gradients)
    yield _case(op, "zero_gradients", "no gradient anywhere: 0 / 0 is 0", gradient=0.0)


def _square_sum(op: str) -> Iterable[Case]:
    yield _case(op, "adaptive", "gradients times |w|", adaptive=True)
    yield _case(op, "adaptive_eta", "gradients times |w| + eta", adaptive=True, eta=0.01)
    yield _case(op, "adaptive_per_tensor", "biases are not stretched", adaptive=_alternating(), eta=0.1)


def _perturb(op: str) -> Iterable[Case]:
    yield _case(op, "usual_rho", "a step as training makes it", rho=0.05)
    yield _case(op, "rho_0", "no step at all", rho=0.0)
    yield _case(op, "rho_per_tensor", "parameter groups of different radius, one of them 0", rho=[2.0 * i for i in range(len(SHAPES))])
    yield _case(op, "adaptive", "ASAM as davda54/sam has it: eta = 0", adaptive=True, representative=True)
    yield _case(op, "adaptive_eta", "ASAM as its paper has it", adaptive=True, eta=0.01)
    yield _case(op, "adaptive_per_tensor", "biases are not stretched; rho per tensor beside it", adaptive=_alternating(), eta=0.1, rho=_ramp(3.0, 12.0))
    yield _case(op, "large_eps", "eps is added to the norm, not to its square", eps=5.0)
    yield _case(op, "grad_scale", "gradients of a scaled loss; eps is of the unscaled norm", grad_scale=65536.0, gradient=2.0**-6, eps=0.3)
    yield _case(op, "grad_scale_adaptive", "the same where gradients are stretched", grad_scale=65536.0, gradient=2.0**-6, adaptive=True, eta=0.1, eps=0.3)
    yield _case(op, "no_inf_found", "the flag stays 0", found_inf=0.0, grad_scale=65536.0, gradient=2.0**-6, representative=True)
    yield _case(op, "inf_found_before", "the flag stays 1 and nothing moves, but backups are written", found_inf=1.0)
    yield _case(op, "square_sum_given", "the norm of more than is in this call", square_sum=2000.0, representative=True)
    yield _case(op, "square_sum_given_scaled", "the same, of scaled gradients", square_sum=2000.0 * 2.0**20, grad_scale=65536.0, gradient=2.0**-6, eps=0.3)


def _sgd(op: str) -> Iterable[Case]:
    yield _case(op, "without_backups", "from the parameters themselves", backups=())
    yield _case(op, "plain", "neither momentum nor decay", momentum=0.0, weight_decay=0.0, backups=(), representative=True)
    yield _case(op, "no_momentum", "decay alone, from backups", momentum=0.0)
    yield _case(op, "nesterov", "the gradient beside the buffer", nesterov=True, representative=True)
    yield _case(op, "decoupled", "SGDW: the weights shrink, the buffer does not see it", decoupled=True, weight_decay=0.5)
    yield _case(op, "decoupled_nesterov", "SGDW with Nesterov's momentum", decoupled=True, nesterov=True, weight_decay=0.5)
    yield _case(op, "maximize", "decay still shrinks when the gradient is followed", maximize=True, weight_decay=0.5)
    yield _case(op, "maximize_decoupled", "the same, decoupled", maximize=True, decoupled=True, weight_decay=0.5, backups=())
    yield _case(op, "rates_per_tensor", "parameter groups of different rates, one of them 0", lr=_ramp(0.0, 1.0), weight_decay=_ramp(0.7, 0.0))
    yield from _scaled(op)


def _adamw(op: str) -> Iterable[Case]:
    yield _case(op, "without_backups", "from the parameters themselves", backups=())
    yield _case(op, "first_step", "from zero moments: nothing hides 1 - beta, and the correction of the bias is largest", steps=lambda i: 0, moments=0.0)
    yield _case(op, "steps_per_tensor", "tensors that joined at different times, one after ten million steps", steps=lambda i: 10**i)
    yield _case(op, "adam", "decay added to the gradient", decoupled=False, weight_decay=0.5)
    yield _case(op, "no_decay", "weights that are left as large as they are", weight_decay=0.0)
    yield _case(op, "maximize", "decay still shrinks when the gradient is followed", maximize=True, weight_decay=0.5, representative=True)
    yield _case(op, "maximize_adam", "the same, added to the gradient", maximize=True, decoupled=False, weight_decay=0.5, backups=())
    yield _case(op, "other_betas", "betas and eps are not built in", betas=(0.5, 0.75), eps=0.1)
    yield _case(op, "beta1_0", "no memory of gradients", betas=(0.0, 0.99))
    yield _case(op, "rates_per_tensor", "parameter groups of different rates, one of them 0", lr=_ramp(0.0, 1.0), weight_decay=_ramp(0.7, 0.0))
    yield from _scaled(op)


def _scaled(op: str) -> Iterable[Case]:
    yield _case(op, "grad_scale", "gradients of a scaled loss", grad_scale=65536.0, gradient=2.0**-6, lr=1.0)
    yield _case(op, "no_inf_found", "the flag lets the step pass", found_inf=0.0, grad_scale=65536.0, gradient=2.0**-6, lr=1.0, representative=True)
    yield _case(op, "inf_found", "the backups come back, nothing else moves", found_inf=1.0, representative=True)
    yield _case(op, "inf_found_without_backups", "nothing moves at all", found_inf=1.0, backups=())


_OWN: dict[str, Callable[[str], Iterable[Case]]] = {
    "sam_square_sum": _square_sum,
    "sam_perturb_": _perturb,
    "sam_restore_": lambda op: (),
    "sgd_step_": _sgd,
    "adamw_step_": _adamw,
}
# the lists each op takes beside numbers, and what it is called with where a row says nothing
_ROLES = {
    "sam_square_sum": ("params", "grads"),
    "sam_perturb_": ("params", "grads", "backups"),
    "sam_restore_": ("params", "backups"),
    "sgd_step_": ("params", "grads", "momentum_buffers", "backups"),
    "adamw_step_": ("params", "grads", "exp_avgs", "exp_avg_sqs", "backups"),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd_step_": {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1},
    "adamw_step_": {"lr": 0.5, "weight_decay": 0.1},
}


def _case(
    op: str,
    name: str,
    why: str,
    shapes: Sequence[Shape] = SHAPES,
    *,
    layout: Layout | None = None,
    dtypes: Dtypes = lambda dtype: (dtype,),
    gradient: float = 1.0,
    moments: float = 1.0,
    steps: Callable[[int], int] = lambda i: 4 + 3 * i,
    representative: bool = False,
    **options: Any,
) -> Case:
    """`gradient`: standard deviation before a grad_scale; `moments`: factor of those of the gradient; `steps`: of the tensor i.

    `options` go to the op, flags as tensors.
    """
    options = _DEFAULTS.get(op, {}) | options
    if op == "sam_perturb_":
        options.setdefault("rho", math.sqrt(sum(map(math.prod, shapes))))
    scales = {"grads": gradient * options.get("grad_scale", 1.0), "exp_avgs": 0.5 * moments, "exp_avg_sqs": 0.1 * moments}
    roles = [role for role in _ROLES[op] if role not in options and not (role == "momentum_buffers" and not options["momentum"])]

    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        def draw(role: str) -> list[Tensor]:
            drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
            kinds = dtypes(dtype)
            if role == "exp_avg_sqs":
                # as large as the squares of what exp_avgs averages: a step of Adam has the size of its rate
                drawn = [0.3 + values.square() for values in drawn]
            tensors = [(scales.get(role, 0.5) * values).to(device, kinds[i % len(kinds)]) for i, values in enumerate(drawn)]
            return layout(role, tensors) if layout else tensors

        inputs: Inputs = {role: draw(role) for role in roles}
        if op == "adamw_step_":
            inputs["steps"] = [torch.tensor(float(steps(i)), device=device) for i in range(len(shapes))]
        return inputs | {key: torch.tensor(value, dtype=_FLAGS[key], device=device) if key in _FLAGS else value for key, value in options.items()}

    return Case(name, why, make, representative, _FIXED)


def _ramp(low: float, high: float) -> list[float]:
    return [low + (high - low) * i / (len(SHAPES) - 1) for i in range(len(SHAPES))]


def _alternating() -> list[bool]:
    return [i % 2 == 0 for i in range(len(SHAPES))]


def _flat_views(role: str, tensors: list[Tensor]) -> list[Tensor]:
    """One buffer for a role: a number before each tensor that belongs to none."""
    spare = tensors[0].new_full((1,), 7.0)
    buffer = torch.cat([part for tensor in tensors for part in (spare, tensor.flatten())] + [spare])
    views, start = [], 0
    for tensor in tensors:
        views.append(buffer[start + 1 : start + 1 + tensor.numel()].view(tensor.shape))
        start += 1 + tensor.numel()
    return views


def _transposed(role: str, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for tensor in tensors]


def _channels_last(role: str, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for tensor in tensors]


def _gaps(role: str, tensors: list[Tensor]) -> list[Tensor]:
    return [torch.stack((tensor, tensor + 1), -1)[..., 0] for tensor in tensors]


def _only(chosen: str, layout: Layout) -> Layout:
    """A layout for one role, all others as they come."""
    return lambda role, tensors: layout(role, tensors) if role == chosen else tensors


def _expanded_gradients(role: str, tensors: list[Tensor]) -> list[Tensor]:
    if role != "grads":
        return tensors
    return [tensor.flatten()[:1].view((1,) * tensor.dim()).expand(tensor.shape) if tensor.numel() else tensor for tensor in tensors]


# tensors as long as the parameters that an op reads or writes, each time it does
_STREAMS = {"sam_square_sum": 1, "sam_perturb_": 5, "sam_restore_": 2, "sgd_step_": 5, "adamw_step_": 7}


def gpu_cases(op: str, width: int = 384, depth: int = 12) -> list[BenchCase]:
    """The parameters of ViT-S's blocks."""
    block: list[Shape] = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
    block += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    shapes = block * depth
    case = _case(op, f"vit_{width}_{depth}", "", shapes)
    count = sum(map(math.prod, shapes))
    elements = {"forward": _STREAMS[op] * count}
    return [BenchCase(case.name, f"{len(shapes)} tensors of {count / 1e6:.0f} M numbers", case.make, fixed=case.fixed, elements=elements)]
