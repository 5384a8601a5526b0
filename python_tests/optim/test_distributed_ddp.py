"""SAM with DistributedDataParallel: what is exchanged, and what each process climbs along."""

import contextlib
import copy

import pytest
import torch
from sam_problems import bits, mlp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from two_processes import SIZE, on_two_processes, processes  # noqa: F401

import vtkernels as vt

X = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
RHO = 0.3
BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01}),
    "AdamW by itself": (torch.optim.AdamW, {"lr": 0.01, "foreach": True}),
}
every_base = pytest.mark.parametrize("base", BASES)
every_sync = pytest.mark.parametrize("sync", ["local", "global"])


def error(model: nn.Module, rows: slice) -> torch.Tensor:
    return (model(X[rows]) - Y[rows]).square().mean()


def rows_of(rank: int) -> slice:
    share = len(X) // SIZE
    return slice(rank * share, (rank + 1) * share)


class Parallel:
    """A model, its exchange counted, and SAM around it."""

    def __init__(self, rank: int, sync: str, base: str = "SGD", model: nn.Module | None = None, sam: dict | None = None, **ddp):
        self.rank, self.exchanges = rank, 0
        self.net = DistributedDataParallel(mlp(torch.float64) if model is None else model, **ddp)
        self.net.register_comm_hook(None, self._counted)
        optimizer, options = BASES[base]
        self.sam = vt.optim.SAM(self.net.parameters(), optimizer, rho=RHO, model=self.net, sync=sync, **(sam or {}), **options)

    def _counted(self, _, bucket):
        self.exchanges += 1
        return allreduce_hook(None, bucket)

    def backward(self) -> None:
        error(self.net, rows_of(self.rank)).backward()

    def step(self) -> None:
        self.backward()
        with self.sam.perturbed():
            self.backward()
        self.sam.step()
        self.sam.zero_grad()

    def assert_equal_on_all(self) -> None:
        mine = [bits(tensor) for tensor in self.net.parameters()]
        theirs = [None] * SIZE
        torch.distributed.all_gather_object(theirs, mine)
        assert all(other == mine for other in theirs)

    def assert_close_to(self, model: nn.Module, atol: float = 1e-12) -> None:
        for mine, other in zip(self.net.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.detach(), other.detach(), rtol=0, atol=atol)


def by_hand(model: nn.Module, sync: str, base: str, steps: int) -> nn.Module:
    """Every process' passes one after the other, in one process."""
    model = copy.deepcopy(model)
    params = list(model.parameters())
    optimizer, options = BASES[base]
    bare = optimizer(params, **{**options, "foreach": False})
    for _ in range(steps):
        here = [param.detach().clone() for param in params]
        first = [torch.autograd.grad(error(model, rows_of(rank)), params) for rank in range(SIZE)]
        mean = [sum(grads) / SIZE for grads in zip(*first, strict=True)]
        for param in params:
            param.grad = torch.zeros_like(param)
        for rank in range(SIZE):
            climb = first[rank] if sync == "local" else mean
            norm = torch.cat([grad.flatten() for grad in climb]).norm()
            with torch.no_grad():
                for param, old, grad in zip(params, here, climb, strict=True):
                    param.copy_(old + RHO * grad / norm)
            for param, grad in zip(params, torch.autograd.grad(error(model, rows_of(rank)), params), strict=True):
                param.grad += grad / SIZE
        with torch.no_grad():
            for param, old in zip(params, here, strict=True):
                param.copy_(old)
        bare.step()
    return model


@every_base
@every_sync
@pytest.mark.parametrize("views", [False, True], ids=["", "gradients are views of buckets"])
@on_two_processes
def test_steps_are_those_by_hand(rank, base, sync, views):
    parallel = Parallel(rank, sync, base, gradient_as_bucket_view=views)
    expected = by_hand(parallel.net.module, sync, base, 4)
    for _ in range(4):
        parallel.step()
    parallel.assert_close_to(expected)
    parallel.assert_equal_on_all()


def test_by_hand_tells_local_from_global():
    """Else the test above would compare nothing."""
    model = mlp(torch.float64)
    ends = [nn.utils.parameters_to_vector(by_hand(model, sync, "SGD", 4).parameters()) for sync in ("local", "global")]
    assert (ends[0] - ends[1]).abs().max() > 1e-3


@every_base
@on_two_processes
def test_global_is_one_process_with_the_whole_batch(rank, base):
    parallel = Parallel(rank, "global", base)
    alone = copy.deepcopy(parallel.net.module)
    optimizer, options = BASES[base]
    sam = vt.optim.SAM(alone.parameters(), optimizer, rho=RHO, **options)
    for _ in range(4):
        parallel.step()
        error(alone, slice(None)).backward()
        sam.step(lambda: error(alone, slice(None)).backward())
        sam.zero_grad()
    parallel.assert_close_to(alone)


@every_sync
@pytest.mark.parametrize("form", ["steps", "closure", "block"])
@on_two_processes
def test_local_exchanges_no_gradient_in_pass_one(rank, sync, form):
    parallel = Parallel(rank, sync)
    parallel.step()
    counts = []
    for _ in range(2):
        before = parallel.exchanges
        parallel.backward()
        counts.append(parallel.exchanges - before)
        if form == "steps":
            parallel.sam.first_step(zero_grad=True)
            parallel.backward()
            parallel.sam.second_step(zero_grad=True)
        elif form == "closure":
            parallel.sam.step(parallel.backward)
            parallel.sam.zero_grad()
        else:
            with parallel.sam.perturbed():
                parallel.backward()
            parallel.sam.step()
            parallel.sam.zero_grad()
        counts.append(parallel.exchanges - before - counts[-1])
    assert counts == ([0, 1] if sync == "local" else [1, 1]) * 2
    assert parallel.net.require_backward_grad_sync


@every_sync
@on_two_processes
def test_accumulation_with_the_users_own_no_sync(rank, sync):
    parallel = Parallel(rank, sync)
    expected = by_hand(parallel.net.module, sync, "SGD", 3)
    rows = rows_of(rank)
    halves = [slice(rows.start, rows.start + 2), slice(rows.start + 2, rows.stop)]

    def accumulated():
        for i, half in enumerate(halves):
            with parallel.net.no_sync() if i == 0 else contextlib.nullcontext():
                (error(parallel.net, half) / 2).backward()

    for _ in range(3):
        before = parallel.exchanges
        accumulated()
        with parallel.sam.perturbed():
            accumulated()
        parallel.sam.step()
        parallel.sam.zero_grad()
        assert parallel.exchanges - before == (1 if sync == "local" else 2)
    parallel.assert_close_to(expected)
    parallel.assert_equal_on_all()


@on_two_processes
def test_plain_steps_between_exchange_their_gradients(rank):
    parallel = Parallel(rank, "local", sam={"every": 2})
    for exchanged_in_pass_one in (0, 1, 0, 1):
        before = parallel.exchanges
        parallel.backward()
        assert parallel.exchanges - before == exchanged_in_pass_one
        with parallel.sam.perturbed() as wanted:
            if wanted:
                parallel.backward()
        parallel.sam.step()
        parallel.sam.zero_grad()
        parallel.assert_equal_on_all()


@on_two_processes
def test_after_an_error_in_pass_two_gradients_are_exchanged_again(rank):
    parallel = Parallel(rank, "local")
    start = [bits(param) for param in parallel.net.parameters()]
    parallel.backward()
    with pytest.raises(ZeroDivisionError), parallel.sam.perturbed():
        raise ZeroDivisionError
    assert [bits(param) for param in parallel.net.parameters()] == start
    assert parallel.net.require_backward_grad_sync
    expected = by_hand(parallel.net.module, "local", "SGD", 1)
    parallel.sam.zero_grad()
    parallel.step()
    parallel.assert_close_to(expected)


@every_sync
@pytest.mark.parametrize("batchnorm", ["first", "second", "both"])
@on_two_processes
def test_running_statistics_are_those_of_the_pass_asked_for(rank, sync, batchnorm):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    parallel = Parallel(rank, sync, model=model, sam={"batchnorm": batchnorm})
    means = []
    model[0].register_forward_hook(lambda _, __, out: means.append(out.detach().mean(0)))
    # DistributedDataParallel gives everybody the statistics of rank 0 before a forward
    expected = torch.zeros(5, dtype=torch.float64)
    for _ in range(3):
        means.clear()
        parallel.step()
        for mean in {"first": means[:1], "second": means[1:], "both": means}[batchnorm]:
            expected = 0.9 * expected + 0.1 * mean
        torch.distributed.broadcast(expected, 0)
        found = model[1].running_mean.clone()
        torch.distributed.broadcast(found, 0)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert model[1].num_batches_tracked == (6 if batchnorm == "both" else 3)
    parallel.assert_equal_on_all()


class Branches(nn.Module):
    """The second branch is taken only where asked for."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()
        self.both = True

    def forward(self, x):
        return self.always(x) + self.sometimes(x) if self.both else self.always(x)


@every_sync
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
# whether a process takes the second branch in pass one and in pass two
@pytest.mark.parametrize("taken", [((1, 0), (1, 0)), ((0, 1), (0, 1)), ((1, 0), (0, 1)), ((1, 1), (1, 0)), ((0, 0), (0, 0))], ids=str)
@on_two_processes
def test_parameters_unused_in_a_pass(rank, sync, base, taken):
    parallel = Parallel(rank, sync, base, model=Branches(), find_unused_parameters=True)
    branch = parallel.net.module.sometimes
    parallel.step()
    for _ in range(2):
        before = [bits(param) for param in branch.parameters()]
        parallel.net.module.both = taken[rank][0]
        parallel.backward()
        with parallel.sam.perturbed():
            parallel.net.module.both = taken[rank][1]
            parallel.backward()
        assert [bits(param) for param in branch.parameters()] == before
        parallel.sam.step()
        parallel.sam.zero_grad()
        # a gradient of zeros, too, makes a step, and DistributedDataParallel gives one where a pass without exchange had used the branch
        used = any(second or (first and sync == "local") for first, second in taken)
        assert ([bits(param) for param in branch.parameters()] != before) == used
        parallel.assert_equal_on_all()


@on_two_processes
def test_plain_steps_of_a_warm_up_are_exchanged(rank):
    parallel = Parallel(rank, "local")
    parallel.sam.enabled = False
    for _ in range(2):
        parallel.backward()
        parallel.sam.step()
        parallel.sam.zero_grad()
        parallel.assert_equal_on_all()
    assert parallel.exchanges == 2
    parallel.sam.enabled = True
    parallel.step()
    assert parallel.exchanges == 3, "pass two alone"
    parallel.assert_equal_on_all()


@on_two_processes
def test_static_graph(rank):
    with pytest.raises(ValueError, match="sync must be global with static_graph=True"):
        Parallel(rank, "local", static_graph=True)
    parallel = Parallel(rank, "global", static_graph=True)
    expected = by_hand(parallel.net.module, "global", "SGD", 4)
    for _ in range(4):
        parallel.step()
    parallel.assert_close_to(expected)
    parallel.assert_equal_on_all()
