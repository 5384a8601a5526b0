"""A run that was stopped goes on as if it had not been."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from runs import Losses, assert_same_weights, loader, rich_trainer, sgd, tensors, tiny_task, trainer

import vtkernels as vt
from vtkernels.train import CheckpointError, Interrupted, Observer
from vtkernels.train.checkpoint import read

HERE = Path(__file__).parent
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
# each costs two seconds of a core
KILLS = 20 if FULL else 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_bit_equal_after_kills_at_random_moments(tmp_path):
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(HERE / "killed_runs.py"), str(tmp_path), str(KILLS), "7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS} kills" in done.stdout


class StopAt(Observer):
    """As if somebody had sent a signal during an update."""

    def __init__(self, step: int):
        self.step = step

    def on_start(self, trainer):
        self.trainer = trainer

    def on_step(self, record):
        if record.step == self.step:
            os.kill(os.getpid(), 15)


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_stopped_and_resumed_in_another_process_state(tmp_path, step):
    whole, first, second = Losses(), Losses(), Losses()
    expected = rich_trainer(tmp_path / "whole", [whole])
    history = expected.fit()
    stopped = rich_trainer(tmp_path / "parts", [first, StopAt(step)], save_every_updates=None)
    with pytest.raises(Interrupted):
        stopped.fit()
    # whatever the process did in between
    torch.manual_seed(99)
    torch.rand(3)
    resumed = rich_trainer(tmp_path / "parts", [second], save_every_updates=None).resume()
    assert resumed.progress.update == step
    again = resumed.fit()
    assert first.curve + second.curve == whole.curve
    assert_same_weights(resumed.task, expected.task)
    bare = [[replace(record, seconds={}) for record in epochs] for epochs in (again.epochs, history.epochs)]
    assert bare[0] == bare[1]
    ends = [tensors(read(tmp_path / name / "last.pt")) for name in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_more_epochs_than_at_first(tmp_path):
    trainer(tmp_path, epochs=1).fit()
    history = trainer(tmp_path, epochs=3).resume().fit()
    assert [record.epoch for record in history.epochs] == [1, 2, 3]


def test_another_precision_than_at_first(tmp_path):
    trainer(tmp_path, epochs=1).fit()
    again = trainer(tmp_path, precision="float16").resume()
    assert again.precision.scaler.get_scale() == 2.0**16
    assert len(again.fit().epochs) == 2


def test_a_finished_run_is_not_repeated(tmp_path):
    seen = Losses()
    trainer(tmp_path).fit()
    history = trainer(tmp_path, observers=[seen]).resume().fit()
    assert len(history.epochs) == 2 and not seen.records


def test_a_run_is_not_overwritten(tmp_path):
    trainer(tmp_path).fit()
    with pytest.raises(FileExistsError, match="resume"):
        trainer(tmp_path).fit()


def test_resume_from_a_file_and_into_another_folder(tmp_path):
    trainer(tmp_path / "a", epochs=1).fit()
    for source in (tmp_path / "a" / "best.pt", tmp_path / "a"):
        target = trainer(tmp_path / f"b{source.suffix}").resume(source)
        assert target.progress.update == 6
        assert len(target.fit().epochs) == 2
    assert not trainer(tmp_path / "c").files.holds_run


@pytest.mark.parametrize("workers", [0, 2])
def test_the_middle_of_an_epoch_with_workers(tmp_path, workers):
    whole, second = Losses(), Losses()
    trainer(None, train=loader(workers=workers), observers=[whole]).fit()
    with pytest.raises(Interrupted):
        trainer(tmp_path, train=loader(workers=workers), observers=[StopAt(3)]).fit()
    trainer(tmp_path, train=loader(workers=workers), observers=[second]).resume().fit()
    assert second.curve == whole.curve[3:]


def test_what_differs_is_told(tmp_path):
    trainer(tmp_path, epochs=1).fit()
    with pytest.raises(ValueError, match="batch_size 4 then and 3 now"):
        trainer(tmp_path, train=loader(batch=3)).resume()
    with pytest.raises(ValueError, match="state of the ema"):
        trainer(tmp_path, ema_decay=0.9).resume()
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer(tmp_path, tiny_task(width=24, heads=2)).resume()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        trainer(tmp_path / "nothing").resume()
    with pytest.raises(ValueError, match="path"):
        trainer().resume()
    with pytest.raises(TypeError, match="create_loader"):
        trainer(train=[(torch.zeros(1, 3, 8, 8), torch.zeros(1))])


def test_the_place_in_an_epoch_for_other_numbers_of_processes():
    """Each sample of an epoch once, whoever read the first ones."""
    two = [loader(48, 4, rank=rank, world=2) for rank in range(2)]
    read = [list(islice(each, 2)) for each in two]
    for count, batch in ((1, 8), (1, 2), (4, 2), (4, 4)):
        rest = [loader(48, batch, rank=rank, world=count) for rank in range(count)]
        for each in rest:
            each.load_state_dict(two[0].state_dict())
        images = torch.cat([images for part in (*read, *rest) for images, _ in part])
        expected = torch.cat([images for images, _ in loader(48, 48, train=False)])
        assert len(images) == 48
        assert torch.equal(*(rows[rows[:, 0].argsort()] for rows in (images.flatten(1), expected.flatten(1))))
    with pytest.raises(ValueError, match="batch_size 4 then and 5 now, world 2 then and 1 now; go on at an epoch's start"):
        loader(48, 5, rank=0, world=1).load_state_dict(two[0].state_dict())
    with pytest.raises(ValueError, match="samples 48 then and 40 now"):
        loader(40, 8, rank=0, world=1).load_state_dict(two[0].state_dict())


def test_the_place_in_two_streams_for_another_number_of_processes():
    def streams(rank, world):
        place = {"rank": rank, "world": world}
        return vt.data.TwoStreams(loader(24, 8 // world, **place), loader(40, 16 // world, **place))

    pairs = [iter(streams(rank, 2)) for rank in range(2)]
    two = [streams(rank, 2) for rank in range(2)]
    for each in two:
        next(iter(each))
    one = streams(0, 1)
    one.load_state_dict(two[0].state_dict())
    for pair in pairs:
        next(pair)
    found = list(one)
    assert len(found) == 2
    for images, targets in found:
        parts = [next(pair) for pair in pairs]
        expected = [torch.cat(column) for column in zip(*(told.split(batch) for batch, told in parts), strict=True)]
        for some, wanted in zip(targets.split(images), expected, strict=True):
            assert torch.equal(*(rows[rows[:, 0].argsort()] for rows in (some.flatten(1), wanted.flatten(1))))


def test_config_is_kept(tmp_path):
    trainer(tmp_path, epochs=1, config={"name": "first", "sizes": [1, 2]}).fit()
    assert read(tmp_path / "last.pt")["config"] == {"name": "first", "sizes": [1, 2]}


def test_state_of_the_schedule(tmp_path):
    from vtkernels.optim.schedules import Plateau

    def plateau():
        return Plateau(lr=0.1, patience=0, factor=0.5, mode="max")

    made = trainer(tmp_path, schedule=plateau(), epochs=4, optimizer=sgd)
    made.fit()
    again = trainer(tmp_path, schedule=plateau(), epochs=4).resume()
    assert again.schedule.state_dict() == made.schedule.state_dict()
    assert again.schedule(100) == made.schedule(100)
