"""An overflow on one process: all skip the step, all halve the scale, all stay the same."""

import pytest
import torch
from sam_problems import bits, mlp
from test_distributed_ddp import BASES, error, rows_of
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from two_processes import SIZE, on_two_processes, processes  # noqa: F401

import vtkernels as vt

SCALE = 1024.0
every_base = pytest.mark.parametrize("base", BASES)
every_setting = pytest.mark.parametrize("setting", ["local", "global", "sharded"])
every_bad = pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)


class Scaled:
    """One process of a training with a scaler, or without one."""

    def __init__(self, rank: int, setting: str, base: str, scaled: bool = True):
        self.rank, self.setting = rank, setting
        self.net = mlp(torch.float64)
        if setting == "sharded":
            fully_shard(self.net[0])
            fully_shard(self.net)
        else:
            self.net = DistributedDataParallel(self.net)
        optimizer, options = BASES[base]
        sync = "global" if setting == "global" else "local"
        self.sam = vt.optim.SAM(self.net.parameters(), optimizer, rho=0.3, model=self.net, sync=sync, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000, enabled=scaled)

    def backward(self, bad: float | None = None) -> None:
        loss = self.scaler.scale(error(self.net, rows_of(self.rank)))
        # DistributedDataParallel's mean, and the scatter of shards, bring it to others, unless the exchange is left out
        (loss if bad is None else loss * bad).backward()

    def step(self, overflow: tuple[tuple[int, int], ...] = (), bad: float = float("inf"), clip: bool = False, way: str = "block") -> None:
        """`overflow` holds pairs of the pass and the rank it happens in."""
        bads = [bad if (number, self.rank) in overflow else None for number in (1, 2)]
        self.backward(bads[0])
        if way == "steps":
            self.sam.first_step(zero_grad=True)
            self.backward(bads[1])
        else:
            with self.sam.perturbed():
                self.backward(bads[1])
        if clip:
            self.scaler.unscale_(self.sam)
            nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
        self.scaler.step(self.sam)
        self.scaler.update()
        self.sam.zero_grad()

    def tensors(self) -> list[torch.Tensor]:
        kept = [value for state in self.sam.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        return [tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for tensor in [*self.net.parameters(), *kept]]

    def memory(self) -> list[bytes]:
        return [bits(tensor) for tensor in self.tensors()]

    def assert_equal_on_all(self) -> None:
        theirs = [None] * SIZE
        torch.distributed.all_gather_object(theirs, (self.memory(), self.scaler.get_scale()))
        assert all(other == theirs[0] for other in theirs)


@every_base
@every_setting
@pytest.mark.parametrize("overflow", [((1, 0),), ((1, 1),), ((2, 0),), ((2, 1),), ((1, 0), (2, 1))], ids=str)
@on_two_processes
def test_an_overflow_on_one_process_skips_the_step_on_all(rank, setting, base, overflow):
    for bad, clip, way in ((float("inf"), False, "block"), (float("nan"), True, "steps")):
        scaled = Scaled(rank, setting, base)
        scaled.step()
        before = scaled.memory()
        scaled.step(overflow, bad, clip, way)
        assert scaled.memory() == before
        assert scaled.scaler.get_scale() == SCALE / 2
        scaled.step()
        assert scaled.memory() != before and all(tensor.isfinite().all() for tensor in scaled.tensors())
        scaled.assert_equal_on_all()


@every_base
@every_setting
@every_bad
@on_two_processes
def test_without_a_scaler_a_lost_first_gradient_skips_the_step_on_all(rank, setting, base, bad):
    training = Scaled(rank, setting, base, scaled=False)
    training.step()
    for way in ("block", "steps"):
        before = training.memory()
        training.step(((1, 1),), bad, way=way)
        assert training.memory() == before
        training.step(way=way)
        assert training.memory() != before
        training.assert_equal_on_all()


@every_setting
@on_two_processes
def test_a_scale_changes_no_step(rank, setting):
    ends = []
    for scaled in (True, False):
        torch.manual_seed(0)
        training = Scaled(rank, setting, "SGD", scaled)
        for _ in range(3):
            training.step(clip=True)
        ends.append(training.tensors())
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
