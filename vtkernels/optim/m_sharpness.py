"""m-sharpness on one device: what data-parallel SAM does, replica after replica."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vtkernels._core import check
from vtkernels.optim import vectors
from vtkernels.optim.sam import SAM


def m_sharpness_passes(sam: SAM, closures: Sequence[Callable[[], Any]]) -> list[Any]:
    """Both passes for each chunk of a batch, each chunk with a perturbation of its own; `.grad` is then the mean of their gradients.

        sam.zero_grad()
        m_sharpness_passes(sam, [chunk_closure(x, y) for x, y in zip(xs.split(m), ys.split(m))])
        sam.step()

    The step after it is `sam.step()` or `scaler.step(sam)`. The chunks should be equally large; gradients that stood in `.grad` are
    dropped. One chunk is plain SAM. Costs two passes over the batch in all, a perturbation and a restoring for each chunk, and one
    copy of the gradients.

    Args:
        sam: SAM or one of its variants; of LookSAM and friendly SAM, what is remembered takes part in each chunk.
        closures: each does the forward and the backward of one chunk and is called twice.

    Returns:
        What each closure returned in pass one.
    """
    closures = list(closures)
    if not closures:
        check.fail("m_sharpness_passes", "closures", "hold one for each chunk", "none", "try [closure], which is plain SAM")
    params = [param for group in sam.param_groups for param in group["params"]]
    sums, found, results = {}, [], []
    try:
        for closure in closures:
            sam.zero_grad()
            results.append(closure())
            with sam.perturbed() as wanted:
                if wanted:
                    closure()
            if wanted:
                found.append(sam.first_found_inf.clone())
            with torch.no_grad():
                _collect(sums, {param: param.grad for param in params if param.grad is not None})
    except BaseException:
        sam.give_up()
        sam.zero_grad()
        raise
    with torch.no_grad():
        vectors.scale_(list(sums.values()), 1.0 / len(closures))
        if found:
            sam.first_found_inf.copy_(torch.stack(found).amax(0))
    for param in params:
        param.grad = sums.get(param)
    return results


def _collect(sums: dict, grads: dict) -> None:
    both = [param for param in grads if param in sums]
    vectors.add_([sums[param] for param in both], [grads[param] for param in both], 1.0)
    # .grad may be a view of a buffer that the next backward writes to
    sums.update({param: grad.clone() for param, grad in grads.items() if param not in sums})
