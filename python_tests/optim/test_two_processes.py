"""The harness of the distributed tests must itself be able to fail, and to go on after it."""

import time

import pytest
import torch
from two_processes import on_two_processes, processes  # noqa: F401


@on_two_processes
def test_they_are_joined(rank):
    value = torch.tensor(float(rank + 1))
    torch.distributed.all_reduce(value)
    assert value.item() == 3.0


@on_two_processes
def fails_on_one(rank):
    if rank == 1:
        raise AssertionError("not what it should be")
    torch.distributed.barrier()


@on_two_processes
def hangs_on_one(rank):
    if rank == 0:
        time.sleep(1000)


def test_a_failure_is_told_and_survived(processes, monkeypatch):  # noqa: F811
    with pytest.raises(pytest.fail.Exception, match=r"rank 1: (.|\n)*not what it should be"):
        fails_on_one(processes=processes)
    test_they_are_joined(processes=processes)
    monkeypatch.setattr("two_processes.TIMEOUT", 1.0)
    before = [process for process, _ in processes._workers]
    with pytest.raises(pytest.fail.Exception, match="rank 0: no answer within 1 s"):
        hangs_on_one(processes=processes)
    assert not any(process.is_alive() for process in before)
