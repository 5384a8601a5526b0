"""A replacement is tried before it is used: a copy of the module, in float64 with random weights, must give the same.

Releases of a library differ, and official code is copied and edited. What the names and shapes of a module cannot tell,
one run on a small input does.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.instances import strip

# float64 sums in another order differ by 1e-14; whatever is computed otherwise, by far more
TOLERANCE = 1e-9
_found: dict[tuple[Any, ...], str | None] = {}


def differs(rule: Any, module: nn.Module, kind: tuple[Any, ...]) -> str | None:
    """Why the rule's function is not what the module computes; None if it is. Tried once for modules of one kind."""
    key = (rule.op, *kind)
    if key not in _found:
        if any(parameter.is_meta for parameter in module.parameters()):
            return "its parameters are on the meta device; load them first"
        _found[key] = _try(rule, module)
    return _found[key]


@torch.no_grad()
def _try(rule: Any, module: nn.Module) -> str | None:
    generator = torch.Generator().manual_seed(0)
    try:
        trial = _randomised(copy.deepcopy(module), generator)
        arguments = rule.example(trial, generator)
        with torch.autocast("cpu", enabled=False):
            expected = getattr(type(trial), rule.method)(trial, *arguments)
            found = rule.function(trial, *arguments, backend="reference")
    except Exception as error:
        return f"it could not be tried: {type(error).__name__}: {error}"
    expected, found = (result if isinstance(result, Tensor) else result[0] for result in (expected, found))
    if expected.shape != found.shape:
        return f"it gives {list(expected.shape)} where the op gives {list(found.shape)}"
    distance = ((expected - found).abs().max() / expected.abs().max()).item()
    return None if distance <= TOLERANCE else f"it computes something else: {distance:.1e} apart on random weights"


def _randomised(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Without hooks and replacements, and with weights that let every term show: fresh ones may be all zeros."""
    module = strip(module).to("cpu", torch.float64).eval()
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return module
