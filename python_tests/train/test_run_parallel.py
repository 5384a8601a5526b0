"""Two processes do what one does with batches twice as large: copied (DDP) or sharded (FSDP2)."""

import os
import signal
from pathlib import Path

import pytest
import torch
from runs import CLASSES, Losses, Noise, loader, sgd, tiny_model, tiny_task, trainer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from two_processes import on_two_processes, processes  # noqa: F401

import vtkernels as vt
from vtkernels.train import CheckpointError, ClassificationTask, DrlocTask, Interrupted, NonFiniteLoss, Observer, distributed
from vtkernels.train.precision import Precision
from vtkernels.train.validation import validate

CPU = torch.device("cpu")


def sam(module: nn.Module) -> torch.optim.Optimizer:
    return vt.optim.SAM(module.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, model=module, sync="global")


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


OPTIMIZERS = {"sgd": sgd, "sam": sam}


def alone(**options):
    """As if there were no other process."""
    place = {"rank": 0, "world": 1}
    usual = {"train": loader(24, 8, **place), "valid": loader(11, 4, train=False, **place), "parallel": "none"}
    return trainer(**(usual | options))


def full(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def assert_same(found: nn.Module, expected: nn.Module, tolerance: float = 1e-5) -> None:
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(one), full(other), rtol=tolerance, atol=tolerance)


class StopAt(Observer):
    def __init__(self, step: int):
        self.step = step

    def on_step(self, record):
        if record.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Alone:
    """Inside, this process is by itself, whatever the group says."""

    def __enter__(self):
        self.before = distributed.world, distributed.rank
        distributed.world, distributed.rank = (lambda: 1), (lambda: 0)

    def __exit__(self, *error):
        distributed.world, distributed.rank = self.before


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [1, 2])
@on_two_processes
def test_the_loss_of_one_process_with_twice_the_batch(rank, parallel, optimizer, accumulate):
    options = {"optimizer": OPTIMIZERS[optimizer], "clip_norm": 0.5, "epochs": 2, "ema_decay": 0.5}
    expected_curve, curve = Losses(), Losses()
    with Alone():
        expected = alone(observers=[expected_curve], **options)
        expected_history = expected.fit()
    made = trainer(
        None, train=loader(24, 4 // accumulate), valid=loader(11, 4, train=False), parallel=parallel, accumulate=accumulate, observers=[curve], **options
    )
    assert isinstance(made.module, DistributedDataParallel) == (parallel == "ddp")
    assert isinstance(next(made.task.parameters()), DTensor) == (parallel == "fsdp2")
    history = made.fit()
    assert_same(made.task, expected.task)
    if rank == 0:
        torch.testing.assert_close(torch.tensor(curve.curve), torch.tensor(expected_curve.curve), rtol=1e-5, atol=1e-5)
        norms = [torch.tensor([record.grad_norm for record in each.records]) for each in (curve, expected_curve)]
        torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(history.epochs, expected_history.epochs, strict=True):
        for part in ("train", "valid", "ema"):
            assert getattr(found, part) == pytest.approx(getattr(wanted, part), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 13])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@on_two_processes
def test_each_sample_is_evaluated_once(rank, count, parallel):
    class Counting(ClassificationTask):
        def evaluate(self, images, targets):
            return {**super().evaluate(images, targets), "samples": (torch.tensor(float(len(targets))), 1)}

    with Alone():
        expected = alone(task=Counting(tiny_model()), valid=loader(count, 3, train=False, rank=0, world=1)).evaluate()
    made = trainer(None, Counting(tiny_model()), valid=loader(count, 3, train=False), parallel=parallel)
    found = made.evaluate()
    assert found.keys() == expected.keys()
    for name in ("loss", "top1", "top5"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    # its mean is over batches
    batches = sum(-(-len(range(first, count, 2)) // 3) for first in range(2))
    assert found["samples"] * batches == count


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam", "adamw", "friendly"])
@on_two_processes
def test_resumed_in_the_middle_of_an_epoch(rank, tmp_path, parallel, optimizer):
    makers = {"sgd": sgd, "sam": sam, "adamw": adamw, "friendly": lambda module: vt.optim.FriendlySAM(module.parameters(), torch.optim.AdamW, lr=1e-3)}
    folder = Path(shared(tmp_path))
    task = {"dropout": 0.1, "drop_path": 0.2}
    options = {"optimizer": makers[optimizer], "parallel": parallel, "epochs": 3, "ema_decay": 0.5}

    def made(name: str, **more):
        return trainer(folder / name, tiny_task(**task), train=loader(24, 4), valid=loader(7, 4, train=False), **options, **more)

    whole, second = Losses(), Losses()
    expected = made("whole", observers=[whole])
    expected.fit()
    with pytest.raises(Interrupted, match="after update 5"):
        made("parts", observers=[StopAt(4)]).fit()
    assert (folder / "parts" / ("last" if parallel == "fsdp2" else "last.pt")).exists()
    again = made("parts", observers=[second]).resume()
    assert again.progress.update == 5 and again.progress.in_epoch == 2
    again.fit()
    assert_same(again.task, expected.task, 0.0)
    if rank == 0:
        assert second.curve == whole.curve[5:]
    model = vt.create_model(checkpoint=folder / "parts")
    assert model.load_report.complete and not any(isinstance(param, DTensor) for param in model.parameters())


def shared(path) -> str:
    return distributed.gathered(str(path))[0]


@on_two_processes
def test_a_full_disk_of_one_is_told_to_all(rank, tmp_path):
    made = trainer(Path(shared(tmp_path)) / "run", epochs=1)
    made.files._write_whole = no_space
    with pytest.raises(CheckpointError, match="no space"):
        made.fit()


def no_space(state):
    raise OSError(28, "no space left on device")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@on_two_processes
def test_a_bad_loss_of_one_stops_all(rank, tmp_path, parallel):
    class Bad(Noise):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image * (float("inf") if rank == 1 else 1.0), target

    train = vt.data.create_loader(Bad(24), 4, train=True)
    with pytest.raises(NonFiniteLoss, match="not finite|is nan"):
        trainer(Path(shared(tmp_path)) / "run", train=train, parallel=parallel).fit()


def as_one(accumulate: int = 1, **options):
    """What two processes with batches of 4 do."""
    return alone(**{"train": loader(24, 8 // accumulate, rank=0, world=1), "accumulate": accumulate, **options})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [2, 3], ids=["in an epoch", "between two"])
@on_two_processes
def test_two_processes_become_one(rank, tmp_path, stop, accumulate):
    folder = Path(shared(tmp_path))
    options = {"optimizer": adamw, "epochs": 3, "ema_decay": 0.5, "schedule": vt.optim.schedules.Cosine(lr=1e-2, length=9), "log_every": 1}
    whole, rest = Losses(), Losses()
    with Alone():
        expected = as_one(observers=[whole], **options).fit()
    with pytest.raises(Interrupted):
        # several processes agree on a signal when the next update is told
        trainer(folder, train=loader(24, 4), valid=loader(11, 4, train=False), observers=[StopAt(stop - 1)], **options).fit()
    with Alone():
        again = as_one(accumulate, observers=[rest], **options).resume(folder)
        assert again.progress.update == stop
        history = again.fit()
    torch.testing.assert_close(torch.tensor(rest.curve), torch.tensor(whole.curve[stop:]), rtol=1e-4, atol=1e-5)
    assert [record.lr for record in rest.records] == [record.lr for record in whole.records[stop:]]
    for found, wanted in zip(history.epochs, expected.epochs, strict=True):
        for part in ("train", "valid", "ema"):
            assert getattr(found, part) == pytest.approx(getattr(wanted, part), rel=1e-4, abs=1e-5)


@on_two_processes
def test_one_process_becomes_two(rank, tmp_path):
    folder = Path(shared(tmp_path))
    options = {"optimizer": adamw, "epochs": 3, "schedule": vt.optim.schedules.Cosine(lr=1e-2, length=9)}
    whole, rest = Losses(), Losses()
    with Alone():
        as_one(observers=[whole], **options).fit()
        with pytest.raises(Interrupted):
            as_one(accumulate=2, folder=folder / str(rank), observers=[StopAt(4)], **options).fit()
    torch.distributed.barrier()
    again = trainer(None, train=loader(24, 4), valid=loader(11, 4, train=False), observers=[rest], **options).resume(folder / "0")
    assert (again.progress.update, again.progress.in_epoch, again.train_loader.state_dict()["batch"]) == (4, 1, 1)
    history = again.fit()
    assert len(history.epochs) == 3
    if rank == 0:
        torch.testing.assert_close(torch.tensor(rest.curve), torch.tensor(whole.curve[4:]), rtol=1e-4, atol=1e-5)


@on_two_processes
def test_other_numbers_of_processes_keep_the_images_of_an_update(rank, tmp_path):
    folder = Path(shared(tmp_path))
    made = trainer(folder, epochs=1)
    made.fit()
    with Alone():
        for train in (loader(24, 4, rank=0, world=1), loader(24, 7, rank=0, world=1)):
            other = alone(train=train)
            before = [param.clone() for param in other.task.parameters()]
            with pytest.raises(ValueError, match=f"stay 8, got {train.batches.size}; the run had 2 processes, now 1"):
                other.resume(folder)
            # nothing was half taken up
            assert all(map(torch.equal, before, other.task.parameters()))


@on_two_processes
def test_a_sharded_run_is_not_taken_up_whole(rank, tmp_path):
    folder = Path(shared(tmp_path))
    trainer(folder, parallel="fsdp2", epochs=1).fit()
    with Alone(), pytest.raises(CheckpointError, match="last is there, of sharded weights"):
        as_one().resume(folder)


@pytest.mark.parametrize("name", ["swin_nano_patch4_window4_32", "cait_nano_patch4_32", "resnet8_nano", "t2t_vit_nano_32"])
@on_two_processes
def test_families_sharded_block_by_block(rank, name):
    torch.manual_seed(2)
    task = DrlocTask(ClassificationTask(vt.create_model(name, num_classes=CLASSES)))
    images = vt.data.create_loader(Noise(8, 32), 2, train=True)
    made = trainer(None, task, train=images, valid=vt.data.create_loader(Noise(5, 32), 2), parallel="fsdp2", epochs=1)
    assert len(distributed.blocks(made.model)) > 1
    assert made.fit().epochs[0].valid["loss"] > 0


@on_two_processes
def test_validation_of_an_empty_share(rank):
    made = trainer(None, parallel="ddp")
    found = validate(made.task, loader(3, 4, train=False) if rank else [], Precision("float32", CPU), CPU)
    assert found["loss"] > 0 and {"loss", "top1", "top5"} == found.keys()
