"""What goes wrong in long runs: the message says what to do, and the last good state is there."""

import errno
import logging
import os
import signal
import subprocess
import time

import pytest
import torch
from runs import Losses, Noise, assert_same_weights, loader, sam, tiny_task, trainer

from vtkernels.train import CheckpointError, Interrupted, LoaderDied, NonFiniteLoss, Observer, checkpoint

SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Do(Observer):
    """Something after some update."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step(self, record):
        if record.step == self.step:
            self.action()


class BadFrom(Noise):
    """Images of infinite values from some visit on."""

    def __init__(self, count: int, visits: int):
        super().__init__(count)
        self.left = visits

    def __getitem__(self, index):
        self.left -= 1
        image, target = super().__getitem__(index)
        return (image if self.left >= 0 else image * float("inf")), target


def bad_loader(after: int):
    from vtkernels.data import create_loader

    return create_loader(BadFrom(24, after * 4), 4, train=True)


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", SIGNALS)
def test_signals_save_and_say_how_to_go_on(tmp_path, signum):
    before = [signal.getsignal(each) for each in SIGNALS]
    made = trainer(tmp_path, observers=[Do(3, lambda: os.kill(os.getpid(), signum))])
    with pytest.raises(Interrupted, match=f"after update 3.*vtkernels train --resume {tmp_path}") as told:
        made.fit()
    assert told.value.code == 128 + signum
    assert [signal.getsignal(each) for each in SIGNALS] == before
    again = trainer(tmp_path).resume()
    assert again.progress.update == 3
    assert_same_weights(again.task, made.task)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, observers=[Do(2, twice)]).fit()
    assert not list(tmp_path.iterdir())


def test_a_signal_during_validation_does_not_wait_for_its_end(tmp_path):
    def endless():
        yield next(iter(loader(4, train=False)))
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            yield next(iter(loader(4, train=False)))

    made = trainer(tmp_path, valid=endless(), ema_decay=0.9)
    with pytest.raises(Interrupted, match="after update 6"):
        made.fit()
    whole, rest = Losses(), Losses()
    trainer(None, observers=[whole], ema_decay=0.9).fit()
    history = trainer(tmp_path, observers=[rest], ema_decay=0.9).resume().fit()
    assert len(history.epochs) == 2 and rest.curve == whole.curve[6:]


# ---- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [None, sam])
def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path, optimizer):
    options = {"optimizer": optimizer} if optimizer else {}
    made = trainer(tmp_path, train=bad_loader(4), save_every_updates=3, **options)
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan in update 4 \(epoch 0\); try a lower learning rate.*resume"):
        made.fit()
    assert all(param.isfinite().all() for param in made.task.parameters())
    assert trainer(tmp_path, **options).resume().progress.update == 3


def test_without_a_checkpoint_that_is_told(tmp_path):
    with pytest.raises(NonFiniteLoss, match="Nothing was saved yet"):
        trainer(tmp_path, train=bad_loader(0)).fit()
    with pytest.raises(NonFiniteLoss, match="no folder"):
        trainer(None, train=bad_loader(0)).fit()


def test_back_to_the_last_good_state_with_a_lower_rate(tmp_path, caplog):
    data = bad_loader(4)

    class Heal(Observer):
        rates: list[tuple[int, float]] = []

        def on_step(self, record):
            self.rates.append((record.step, record.lr))

    seen = Heal()
    made = trainer(tmp_path, train=data, step_back=2, save_every_updates=2, schedule=lambda update: 0.1, observers=[seen])
    # the set is sound again after it was bad once
    original = made.files.read
    made.files.read = lambda *args: (setattr(data.samples.dataset, "left", 10**6), original(*args))[1]
    with caplog.at_level(logging.WARNING, "vtkernels"):
        history = made.fit()
    assert "back to update 4, and on with 0.5 times the learning rate" in caplog.text
    assert seen.rates[3:5] == [(4, 0.1), (5, 0.05)] and len(history.epochs) == 2
    # what is left of the rate is part of the run
    assert trainer(tmp_path).resume().progress.lr_factor == 0.5


def test_steps_back_come_to_an_end(tmp_path):
    made = trainer(tmp_path, train=bad_loader(0), step_back=2)
    with pytest.raises(NonFiniteLoss):
        made.fit()
    assert made.progress.steps_back == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    made = trainer(tmp_path, save_every_updates=1)
    made.reporter.observers.append(Do(3, lambda: next(made.task.parameters()).data.fill_(float("nan"))))
    with pytest.raises(NonFiniteLoss, match="a weight is not finite"):
        made.fit()
    assert trainer(tmp_path).resume().progress.update == 2


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(small_disk):
    seen = Losses()
    made = trainer(small_disk, save_every_updates=1, observers=[seen, Do(2, lambda: (small_disk / "other").write_bytes(bytes(100_000)))], epochs=1)
    with pytest.raises(CheckpointError, match="no space is left to write .*last.pt; make room.*--resume") as told:
        made.fit()
    assert told.value.errno == errno.ENOSPC
    # nothing half-written takes up room, and what was saved is whole
    assert not list(small_disk.glob(".*"))
    saved = trainer(small_disk).resume().progress.update
    assert 1 <= saved <= len(seen.records)
    (small_disk / "other").unlink()


@pytest.mark.parametrize("stage", ["write", "flush"])
def test_no_space_while_writing_and_while_flushing(tmp_path, monkeypatch, stage):
    made = trainer(tmp_path, save_every_updates=1)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def from_now_on():
        monkeypatch.setattr(torch, "save", full) if stage == "write" else monkeypatch.setattr(os, "fsync", full)

    made.reporter.observers.append(Do(3, from_now_on))
    with pytest.raises(CheckpointError, match="no space"):
        made.fit()
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert trainer(tmp_path).resume().progress.update == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    seen = Losses()
    with pytest.raises(CheckpointError, match="could not be written"):
        trainer(tmp_path / "file" / "run", epochs=1, observers=[seen]).fit()
    # before anything was spent on it
    assert not seen.records


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    whole = trainer(tmp_path, save_every_updates=1, epochs=1)
    whole.fit()
    path = tmp_path / "last.pt"
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    new = {"cut": content[:middle], "flipped": flipped, "empty": b"", "text": b"not a checkpoint", "gone": None}[damage]
    # the best one is another name of it
    path.unlink()
    if new is not None:
        path.write_bytes(new)
    with caplog.at_level(logging.WARNING, "vtkernels"):
        again = trainer(tmp_path).resume()
    assert again.progress.update == 6 and again.progress.in_epoch == 6
    assert ("damaged" in caplog.text) == (damage != "gone")
    assert len(again.fit().epochs) == 2


def test_no_wrong_byte_of_the_directory_goes_unnoticed(tmp_path):
    path = tmp_path / "last.pt"
    state = {"format": 1, "task": {"weight": torch.arange(4.0)}, "rates": [0.5, None]}
    checkpoint.write(state, path)
    content, told = path.read_bytes(), 0
    # behind all entries it says where they are, how long and how packed
    start = content.index(b"PK\x01\x02")
    for mask in (0x08, 0x10, 0xFF):
        for place in range(start, len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
            try:
                found = checkpoint.read(path)
            except CheckpointError:
                told += 1
            else:
                # times, versions and the like, which nothing rests on
                assert torch.equal(found["task"]["weight"], state["task"]["weight"]) and found["rates"] == state["rates"], place
    assert told > len(content) - start


def test_two_damaged_checkpoints_are_told(tmp_path):
    trainer(tmp_path, save_every_updates=1, epochs=1).fit()
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"zip?")
    with pytest.raises(CheckpointError, match="no checkpoint can be read.*last.pt is damaged.*previous.pt is damaged"):
        trainer(tmp_path).resume()
    with pytest.raises(CheckpointError, match="damaged"):
        trainer(tmp_path).resume(tmp_path / "last.pt")


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    torch.save({"format": 1, "task": Evil()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


# ---- processes and observers -----------------------------------------------------------------------------------------


def test_a_killed_worker(tmp_path):
    class Kill(Observer):
        def on_start(self, trainer):
            self.trainer = trainer

        def on_step(self, record):
            if record.step == 2:
                for worker in self.trainer.train_loader._loader._iterator._workers:
                    os.kill(worker.pid, signal.SIGKILL)
                time.sleep(0.2)

    slow = loader(64, 4, workers=1)
    made = trainer(tmp_path, train=slow, observers=[Kill()])
    with pytest.raises(LoaderDied, match="a worker of the loader died in epoch 0.*[Ff]ewer workers.*"):
        made.fit()
    # it may be noticed in the middle of an update, of which nothing is saved then
    if made.files.holds_run:
        again = trainer(tmp_path, train=loader(64, 4)).resume()
        assert again.progress.update >= 2


def test_a_worker_that_dies_while_its_batch_is_fetched(tmp_path, monkeypatch):
    def breaks():
        raise ConnectionResetError(104, "Connection reset by peer")

    made = trainer(tmp_path, train=loader(64, 4))
    monkeypatch.setattr(made, "_groups", breaks)
    with pytest.raises(LoaderDied, match="a worker of the loader died in epoch 0.*Connection reset.*[Ff]ewer workers.*"):
        made.fit()


def test_an_observer_that_fails_is_left_behind(caplog):
    class Failing(Observer):
        calls = 0

        def on_step(self, record):
            self.calls += 1
            raise OSError("the disk of the logs is full")

    failing, seen = Failing(), Losses()
    with caplog.at_level(logging.ERROR, "vtkernels"):
        made = trainer(None, observers=[failing, seen])
        made.fit()
    assert failing.calls == 1 and len(seen.records) == 12
    assert "Failing failed in on_step; training goes on without it" in caplog.text
    assert made.reporter.failed == ["Failing"]


def test_other_errors_pass():
    class Broken(Noise):
        def __getitem__(self, index):
            raise KeyError("of the set itself")

    from vtkernels.data import create_loader

    with pytest.raises(KeyError, match="of the set itself"):
        trainer(None, tiny_task(), train=create_loader(Broken(8), 4, train=True)).fit()
