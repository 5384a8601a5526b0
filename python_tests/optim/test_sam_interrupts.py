"""KeyboardInterrupt at any moment of a step: the weights before it can be had back."""

import os
import signal
import threading

import pytest
import torch
from sam_problems import Golden, bits
from torch import nn

import vtkernels as vt
from vtkernels.optim import sam as sam_module
from vtkernels.optim.interrupts import uninterrupted


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """As on a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


WHEN = pytest.mark.parametrize("when", ["before", "after"])


def interrupt(monkeypatch, module, name: str, when: str, call: int = 1) -> None:
    """Ctrl-C before or after the call-th call."""
    real, calls = getattr(module, name), []

    def patched(*args, **options):
        calls.append(name)
        if len(calls) == call and when == "before":
            raise KeyboardInterrupt
        result = real(*args, **options)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(module, name, patched)


def stepped(golden, sam) -> None:
    sam.zero_grad()
    golden.backward()
    sam.step(golden.backward)


@WHEN
@pytest.mark.parametrize("etas", [1, 2])
@pytest.mark.parametrize("fresh", [False, True], ids=["old backups", "new backups"])
def test_in_the_climb(etas, fresh, when, monkeypatch):
    """With two etas there are two calls, and the second one is interrupted."""
    golden = Golden()
    groups = [{"params": [golden.w], "eta": 0.01}, {"params": [golden.b], "eta": 0.01 * etas}]
    sam = vt.optim.SAM(groups, torch.optim.SGD, lr=0.1, rho=0.5, adaptive=True)
    if not fresh:
        stepped(golden, sam)
    start = [bits(param) for param in golden.params]
    sam.zero_grad()
    golden.backward()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, sam_module, "sam_perturb_", when, etas)
        sam.first_step()
    sam.restore()
    assert [bits(param) for param in golden.params] == start
    stepped(golden, sam)
    assert [bits(param) for param in golden.params] != start


@WHEN
def test_on_the_way_back(when, monkeypatch):
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1, rho=0.5)
    start = golden.values()
    golden.backward()
    sam.first_step()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, sam_module, "sam_restore_", when)
        sam.restore()
    sam.restore()
    assert golden.values() == start


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_signal_within_the_base_step_leaves_a_whole_step(momentum, monkeypatch):
    """Weights from before the step beside a momentum from after it would be neither."""
    golden, whole = Golden(), Golden()
    sams = [vt.optim.SAM(problem.params, torch.optim.SGD, lr=0.1, momentum=momentum) for problem in (golden, whole)]
    stepped(whole, sams[1])
    real = sam_module.base_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sam_module, "base_step", lambda *args: (real(*args), os.kill(os.getpid(), signal.SIGINT), real)[1])
        stepped(golden, sams[0])
    sams[0].restore()
    assert golden.values() == whole.values()
    for problem, sam in zip((golden, whole), sams, strict=True):
        stepped(problem, sam)
    assert golden.values() == whole.values()


def test_a_signal_in_a_kernel_leaves_nothing_perturbed():
    """Real ones, at several moments of a climb over 40 MB."""
    param = nn.Parameter(torch.randn(10_000_000))
    before = param.detach().clone()
    sam = vt.optim.SAM([param], torch.optim.SGD, lr=0.0, rho=1.0)
    param.grad = torch.ones_like(param)
    sam.first_step()
    sam.restore()
    for delay in (0.0, 0.002, 0.005, 0.01):
        param.grad = torch.ones_like(param)
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            with sam.perturbed():
                threading.Event().wait(5)
        timer.join()
        sam.restore()
        assert torch.equal(param, before)


def test_the_first_signal_waits_and_the_second_does_not():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("first")
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        done.append("second")
    assert done == ["first"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone():
    found = []

    def run():
        with uninterrupted():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("load", [False, True], ids=["next first_step", "load_state_dict"])
def test_weights_written_after_a_failed_step_stay(load):
    golden = Golden()
    sam = vt.optim.SAM(golden.params, torch.optim.SGD, lr=0.1, rho=0.5)
    b = bits(golden.b)
    golden.backward()
    sam.first_step()
    with torch.no_grad():
        golden.w.copy_(torch.full_like(golden.w, 7.0))
    with pytest.warns(UserWarning, match="parameters were written since: these are left as they are"):
        if load:
            sam.load_state_dict(sam.state_dict())
        else:
            sam.first_step()
            sam.restore()
    assert golden.w.tolist() == [[7.0, 7.0], [7.0, 7.0]] and bits(golden.b) == b
