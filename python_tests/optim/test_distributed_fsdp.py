"""SAM over parameters sharded by `fully_shard`: one norm over all shards, steps as on one process with the whole batch."""

import copy

import pytest
import torch
from sam_problems import bits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from two_processes import SIZE, on_two_processes, processes  # noqa: F401

import vtkernels as vt

X = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01})
BASES = {
    "SGD": SGD,
    "SGD by itself": (torch.optim.SGD, {**SGD[1], "foreach": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01}),
    "AdamW by itself": (torch.optim.AdamW, {"lr": 0.01, "foreach": False}),
    "torch's fused AdamW": (torch.optim.AdamW, {"lr": 0.01, "fused": True, "amsgrad": True}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01}),
}
SAMS = {
    "SAM": (vt.optim.SAM, {"rho": 0.3}),
    "adaptive": (vt.optim.SAM, {"rho": 0.3, "adaptive": True, "eta": 0.01}),
    "ASAM": (vt.optim.ASAM, {"rho": 0.3}),
    "GSAM": (vt.optim.GSAM, {"rho_max": 0.3, "rho_min": 0.3, "alpha": 0.4}),
    "LookSAM": (vt.optim.LookSAM, {"rho": 0.3, "k": 2}),
    "FriendlySAM": (vt.optim.FriendlySAM, {"rho": 0.3}),
}


class Uneven(nn.Module):
    """No dimension is even, and of the last bias one process holds nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)) * self.scale)))


def sharded(model: nn.Module, whole: set[nn.Parameter] | None = None, **options) -> nn.Module:
    """A copy. Parameters of it given as `whole` (their names) stay plain tensors, and their gradients are averaged by hooks."""
    model = copy.deepcopy(model)
    ignored = {param for name, param in model.named_parameters() if name in (whole or ())}
    fully_shard(model.first, ignored_params=ignored, **options)
    fully_shard(model, ignored_params=ignored, **options)
    return model


def loss_of(model: nn.Module, rank: int | None = None) -> torch.Tensor:
    """Of a rank's part of the batch, or of all of it."""
    share = len(X) // SIZE
    x = X if rank is None else X[rank * share : (rank + 1) * share]
    return (model(x) - x.sum(1, keepdim=True).sin()).square().mean()


def step(sam: vt.optim.SAM, backward, form: str = "block") -> None:
    backward()
    if form == "steps":
        if sam.first_step(zero_grad=True):
            backward()
        sam.second_step(zero_grad=True)
        return
    with sam.perturbed() as wanted:
        if wanted:
            backward()
    sam.step()
    sam.zero_grad()


def full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def assert_same(model: nn.Module, other: nn.Module, atol: float = 1e-10) -> None:
    for found, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(full(found), full(expected), rtol=0, atol=atol)


def local_bits(model: nn.Module) -> list[bytes]:
    return [bits(param.to_local() if isinstance(param, DTensor) else param) for param in model.parameters()]


@on_two_processes
def test_the_norm_is_that_of_all_shards(rank):
    alone = Uneven()
    model = sharded(alone)
    assert [tuple(param.to_local().shape) for param in (model.first.weight, model.last.bias)] == [[(4, 5), (1,)], [(3, 5), (0,)]][rank]
    norms = []
    for net, part in ((model, rank), (alone, None)):
        for adaptive, eta in ((False, 0.0), (True, 0.01)):
            net.zero_grad()
            sam = vt.optim.SAM(net.parameters(), torch.optim.SGD, rho=0.3, adaptive=adaptive, eta=eta, lr=0.1)
            loss_of(net, part).backward()
            sam.first_step()
            norms.append(sam.norm.item())
            sam.restore()
    assert norms[:2] == pytest.approx(norms[2:], rel=1e-13)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", ["steps", "block"])
@on_two_processes
def test_steps_are_those_of_one_process(rank, base, form):
    alone = Uneven()
    model = sharded(alone)
    optimizer, options = BASES[base]
    sam, expected = (vt.optim.SAM(net.parameters(), optimizer, rho=0.3, **options) for net in (model, alone))
    for _ in range(4):
        step(sam, lambda: loss_of(model, rank).backward(), form)
        step(expected, lambda: loss_of(alone).backward(), form)
    assert_same(model, alone)


@pytest.mark.parametrize("kind", SAMS)
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
@on_two_processes
def test_variants_are_those_of_one_process(rank, kind, base):
    alone = Uneven()
    model = sharded(alone)
    (variant, radius), (optimizer, options) = SAMS[kind], BASES[base]
    sam, expected = (variant(net.parameters(), optimizer, **radius, **options) for net in (model, alone))
    for _ in range(4):
        step(sam, lambda: loss_of(model, rank).backward())
        step(expected, lambda: loss_of(alone).backward())
    assert_same(model, alone)


@on_two_processes
def test_restoring_is_exact_and_in_place(rank):
    model = sharded(Uneven())
    sam = vt.optim.SAM(model.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    start, pointers = local_bits(model), [param.to_local().data_ptr() for param in model.parameters()]
    loss_of(model, rank).backward()
    with pytest.raises(ZeroDivisionError), sam.perturbed():
        assert local_bits(model) != start
        raise ZeroDivisionError
    assert local_bits(model) == start
    loss_of(model, rank).backward()
    with sam.perturbed():
        loss_of(model, rank).backward()
    assert local_bits(model) == start
    assert [param.to_local().data_ptr() for param in model.parameters()] == pointers


@pytest.mark.parametrize("base", ["SGD", "AdamW", "RMSprop"])
@pytest.mark.parametrize("kind", ["SAM", "GSAM", "LookSAM", "FriendlySAM"])
@on_two_processes
def test_a_state_dict_continues_bit_by_bit(rank, kind, base):
    (variant, radius), (optimizer, options) = SAMS[kind], BASES[base]
    start = sharded(Uneven())
    ends = []
    for resumed in (False, True):
        model = sharded(Uneven())
        model.load_state_dict(start.state_dict())
        sam = variant(model.parameters(), optimizer, **radius, **options)
        for i in range(5):
            if resumed and i == 3:
                weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(sam.state_dict())
                model = sharded(Uneven())
                model.load_state_dict(weights)
                sam = variant(model.parameters(), optimizer, **radius, **options)
                sam.load_state_dict(state)
            step(sam, lambda model=model: loss_of(model, rank).backward())
        ends.append(local_bits(model))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
@on_two_processes
def test_distributed_checkpoints_take_the_base_optimizer(rank, base):
    optimizer, options = BASES[base]
    ends = []
    start = Uneven()
    for resumed in (False, True):
        model = sharded(start)
        sam = vt.optim.SAM(model.parameters(), optimizer, rho=0.3, **options)
        for i in range(4):
            if resumed and i == 2:
                state = copy.deepcopy(get_optimizer_state_dict(model, sam.base_optimizer))
                sam = vt.optim.SAM(model.parameters(), optimizer, rho=0.3, **options)
                set_optimizer_state_dict(model, sam.base_optimizer, state)
            step(sam, lambda model=model: loss_of(model, rank).backward())
        ends.append(local_bits(model))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("base", ["SGD", "AdamW", "AdamW by itself"])
@pytest.mark.parametrize("kind", ["SAM", "ASAM", "GSAM"])
@on_two_processes
def test_replicated_tensors_beside_shards(rank, kind, base):
    alone = Uneven()
    model = sharded(alone, whole={"scale", "second.weight"})
    plain = [param for param in model.parameters() if not isinstance(param, DTensor)]
    assert len(plain) == 2
    (variant, radius), (optimizer, options) = SAMS[kind], BASES[base]
    sam, expected = (variant(net.parameters(), optimizer, **radius, **options) for net in (model, alone))

    def backward():
        loss_of(model, rank).backward()
        for param in plain:
            torch.distributed.all_reduce(param.grad)
            param.grad /= SIZE

    for _ in range(4):
        step(sam, backward)
        step(expected, lambda: loss_of(alone).backward())
    assert_same(model, alone)


@on_two_processes
def test_hybrid_shards_count_each_element_once(rank):
    """Replicated over one dimension of the mesh, sharded over the other."""
    alone = Uneven()
    for shape in ((SIZE, 1), (1, SIZE)):
        model = sharded(alone, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")))
        norms = []
        for net, part in ((model, rank), (alone, None)):
            net.zero_grad()
            sam = vt.optim.SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
            loss_of(net, part).backward()
            sam.first_step()
            norms.append(sam.norm.item())
            sam.restore()
        assert norms[0] == pytest.approx(norms[1], rel=1e-13)


@on_two_processes
def test_accumulation_and_mixed_precision(rank):
    """Gradients are scattered with the last micro-batch; weights are kept in float32, and multiplied in bfloat16."""
    model = sharded(Uneven().float(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    assert all(param.dtype == torch.float32 for param in model.parameters())
    sam = vt.optim.SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=0.01)
    share = X[rank * 4 : rank * 4 + 4].float()

    def backward() -> float:
        losses = []
        for i, x in enumerate(share.chunk(2)):
            model.set_requires_gradient_sync(i == 1)
            losses.append((model(x) - x.sum(1, keepdim=True).sin()).float().square().mean() / 2)
            losses[-1].backward()
        return sum(loss.item() for loss in losses)

    curve, climbs = [], []
    for _ in range(15):
        curve.append(backward())
        with sam.perturbed():
            climbs.append(backward() - curve[-1])
        sam.step()
        sam.zero_grad()
    total = torch.tensor([curve[0], curve[-1], sum(climbs)])
    torch.distributed.all_reduce(total)
    assert total[1] < total[0] and total[2] > 0
