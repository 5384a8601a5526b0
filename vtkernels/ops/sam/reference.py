"""The multi-tensor ops as plain tensor algebra, a tensor at a time: what the kernels must compute.

Half-precision tensors are computed in float32 and rounded once, when stored.
"""

import torch
from torch import Tensor

from vtkernels._core.op import Backend
from vtkernels.ops.sam.common import AdamWStep, Perturb, Restore, SgdStep, SquareSum, compute_dtype, norm_dtype


def stretch(param: Tensor, adaptive: bool, eta: float) -> Tensor | float:
    """T: by how much a weight's axis is longer than the others."""
    return param.abs() + eta if adaptive else 1.0


def square_sum(call: SquareSum | Perturb) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=call.params[0].device)
    for param, grad, adaptive in zip(call.params, call.grads, call.adaptive, strict=True):
        w, g = param.to(compute_dtype(param)), grad.to(compute_dtype(param))
        total += (stretch(w, adaptive, call.eta) * g).double().square().sum()
    return total


def perturb(call: Perturb) -> Tensor:
    total = square_sum(call) if call.square_sum is None else call.square_sum.reshape(())
    scale = 1.0 if call.grad_scale is None else call.grad_scale.double().reshape(())
    finite = total.isfinite()
    if call.found_inf is not None:
        call.found_inf.masked_fill_(~finite, 1.0)
        finite = finite & (call.found_inf == 0).reshape(())
    # scaled gradients have a scaled norm: their quotient is the same, if eps is scaled too
    per_rho = 1.0 / (total.sqrt() + call.eps * scale)
    for param, grad, backup, rho, adaptive in zip(call.params, call.grads, call.backups, call.rho, call.adaptive, strict=True):
        backup.copy_(param)
        w, g = param.to(compute_dtype(param)), grad.to(compute_dtype(param))
        # without any gradient and with eps = 0 there is nothing to climb: 0 / 0 is 0
        factor = torch.where(total == 0, 0.0, (rho * per_rho).clamp(max=torch.finfo(w.dtype).max)).to(w.dtype)
        t = stretch(w, adaptive, call.eta)
        # in this order: T^2 g may overflow where the step does not
        new = w + t * (t * (g * factor))
        param.copy_(torch.where(finite, new.to(param.dtype), param))
    return (total.sqrt() / scale).to(norm_dtype(call.params))


def restore(call: Restore) -> None:
    for param, backup in zip(call.params, call.backups, strict=True):
        param.copy_(backup)


def sgd(call: SgdStep) -> None:
    step = _wanted(call)
    for i, param in enumerate(call.params):
        old = call.backups[i] if call.backups else param
        w, g = old.to(compute_dtype(param)), _gradient(call, i)
        if call.decoupled:
            w = w * (1 - call.lr[i] * call.weight_decay[i])
        else:
            g = g + call.weight_decay[i] * w
        d = g
        if call.momentum:
            buffer = call.momentum_buffers[i]
            b = call.momentum * buffer.to(g.dtype) + g
            d = g + call.momentum * b if call.nesterov else b
            buffer.copy_(torch.where(step, b.to(buffer.dtype), buffer))
        param.copy_(torch.where(step, (w - call.lr[i] * d).to(param.dtype), old))


def adamw(call: AdamWStep) -> None:
    wanted = _wanted(call)
    for i, param in enumerate(call.params):
        old, m, v = call.backups[i] if call.backups else param, call.exp_avgs[i], call.exp_avg_sqs[i]
        w, g = old.to(compute_dtype(param)), _gradient(call, i)
        if call.decoupled:
            w = w * (1 - call.lr[i] * call.weight_decay[i])
        else:
            g = g + call.weight_decay[i] * w
        t = call.steps[i].double().reshape(()) + 1
        new_m = m.to(g.dtype) + (1 - call.beta1) * (g - m.to(g.dtype))
        new_v = call.beta2 * v.to(g.dtype) + (1 - call.beta2) * g * g
        size, root = call.lr[i] / (1 - call.beta1**t), (1 - call.beta2**t).sqrt()
        new_w = w - size.to(g.dtype) * new_m / (new_v.sqrt() / root.to(g.dtype) + call.eps)
        for tensor, new in ((m, new_m), (v, new_v), (call.steps[i], t.reshape(call.steps[i].shape))):
            tensor.copy_(torch.where(wanted, new.to(tensor.dtype), tensor))
        param.copy_(torch.where(wanted, new_w.to(param.dtype), old))


def _wanted(call: SgdStep | AdamWStep) -> Tensor:
    """Whether the step is made: not if an inf was found. A tensor, so that nothing waits for the device."""
    if call.found_inf is None:
        return torch.ones((), dtype=torch.bool, device=call.params[0].device)
    return (call.found_inf == 0).reshape(())


def _gradient(call: SgdStep | AdamWStep, i: int) -> Tensor:
    g = call.grads[i].to(compute_dtype(call.params[i]))
    if call.grad_scale is not None:
        g = g / call.grad_scale.to(g.dtype).reshape(())
    return -g if call.maximize else g


def _anything(phase: str, call: object) -> None:
    return None


SQUARE_SUM = Backend("reference", _anything, {"forward": square_sum})
PERTURB = Backend("reference", _anything, {"forward": perturb})
RESTORE = Backend("reference", _anything, {"forward": restore})
SGD = Backend("reference", _anything, {"forward": sgd})
ADAMW = Backend("reference", _anything, {"forward": adamw})
