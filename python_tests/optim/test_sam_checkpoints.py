"""Checkpoints and copies of `vt.optim.SAM`."""

import copy
import pickle

import torch
from sam_problems import Golden, bits, mlp, of_each_base

import vtkernels as vt


def state_bits(sam) -> list:
    return [bits(value) for state in sam.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


@of_each_base
def test_a_checkpoint_continues_to_the_bit(base, options):
    x = torch.randn(5, 6)

    def train(model, sam, steps):
        losses = []
        for _ in range(steps):
            loss = model(x).square().mean()
            loss.backward()
            losses.append(loss.item())
            sam.step(lambda: model(x).square().mean().backward())
            sam.zero_grad()
        return losses

    model = mlp()
    sam = vt.optim.SAM(model.parameters(), base, rho=0.1, **options)
    train(model, sam, 3)
    state = pickle.loads(pickle.dumps((model.state_dict(), sam.state_dict())))
    held = [value for entry in state[1]["state"].values() for value in entry.values() if isinstance(value, torch.Tensor) and value.dim()]
    assert len(held) == len([value for entry in sam.state.values() for value in entry.values() if value.dim()]), "no backup in it"
    other = mlp()
    resumed = vt.optim.SAM(other.parameters(), base, rho=0.1, **options)
    other.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert train(other, resumed, 4) == train(model, sam, 4)
    assert state_bits(resumed) == state_bits(sam)
    # and the base optimizer alone reads the same checkpoint, and writes one that is read here
    bare = base(other.parameters(), **options)
    bare.load_state_dict(state[1])
    resumed.load_state_dict(copy.deepcopy(base(other.parameters(), **options).state_dict()))
    assert resumed.param_groups[0]["rho"] == 0.1


def test_checkpoints_of_davda54_load():
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.AdamW, lr=0.1)
    theirs = copy.deepcopy(sam.state_dict())
    theirs["state"] = {i: {"old_p": param.detach().clone()} for i, param in enumerate(golden.params)}
    for group in theirs["param_groups"]:
        group.pop("eta")
        group["rho"] = 0.7
    sam.load_state_dict(theirs)
    assert not sam.state and sam.param_groups[0]["rho"] == 0.7 and sam.param_groups[0]["eta"] == 0.0
    golden.backward()
    sam.step(golden.backward)


def test_a_copy_goes_on_by_itself():
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1, momentum=0.9, every=2)
    golden.backward()
    sam.step(golden.backward)
    sam.zero_grad()
    twin, twin_sam = copy.deepcopy((golden, sam))
    for problem, optimizer in ((golden, sam), (twin, twin_sam)):
        problem.backward()
        optimizer.step(problem.backward)
    assert twin.values() == golden.values() and twin.w is not golden.w
    assert pickle.loads(pickle.dumps(sam)).param_groups[0]["sam_step"] == 2
