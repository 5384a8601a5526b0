"""What the optimizers launch: as much for many tensors as for few, and nothing that makes the host wait for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vtkernels.optim import ASAM, ESAM, GSAM, LAMB, SAM, SGDW, FriendlySAM, LookSAM

# these launch nothing
VIEWS = {"as_strided", "expand", "unbind", "select", "slice", "view", "detach", "empty", "empty_like", "new_empty", "empty_strided", "alias", "unsqueeze"}
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero"}


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    @property
    def launches(self) -> list[str]:
        """What happens inside an op of the library is not among them."""
        return [name for name in self.names if name not in VIEWS]


def parameters(count: int) -> list[torch.Tensor]:
    return [torch.full((i % 5 + 1, 3), 1.0 + i, requires_grad=True) for i in range(count)]


def backward(params: list[torch.Tensor]) -> None:
    for param in params:
        param.grad = torch.full_like(param, 0.5)


def sam_of(kind, **options):
    return lambda params: kind(params, base_optimizer=torch.optim.SGD, lr=0.1, momentum=0.9, **options)


OPTIMIZERS = {
    "SGDW": lambda params: SGDW(params, lr=0.1, momentum=0.9, weight_decay=0.1),
    "LAMB": lambda params: LAMB(params, lr=0.1),
    "SAM": sam_of(SAM),
    "ASAM": sam_of(ASAM),
    "GSAM": sam_of(GSAM),
    "GSAM, loss": sam_of(GSAM, minimize_fp=False),
    "LookSAM": sam_of(LookSAM, k=2),
    "FriendlySAM": sam_of(FriendlySAM),
    "ESAM": sam_of(ESAM),
}


def recorded(build, count: int) -> list[str]:
    """Two steps of an optimizer that has set up its state."""
    params = parameters(count)
    optimizer, names = build(params), []
    for t in range(4):
        backward(params)
        first, second = Recorder(), Recorder()
        if isinstance(optimizer, SAM):
            with first:
                wanted = optimizer.first_step(zero_grad=True)
            if wanted:
                backward(params)
        with second:
            optimizer.step()
        if t >= 2:
            names += first.launches + second.launches
    return names


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_launches_do_not_grow_with_the_tensors(name):
    few, many = recorded(OPTIMIZERS[name], 3), recorded(OPTIMIZERS[name], 30)
    assert few == many
    assert any(launch.startswith(("sgd_step_", "_foreach")) for launch in few)
    assert not WAITING & set(few)
