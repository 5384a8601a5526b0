"""What observers are told, when, and what settings refuse."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import Losses, loader, rich_task, sgd, tiny_task, trainer

import vtkernels as vt
from vtkernels.optim.schedules import Cosine, InEpochs, Noisy, Plateau
from vtkernels.train import EpochRecord, Observer, Settings, Trainer

HERE = Path(__file__).parent


class Everything(Observer):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name.startswith("on_") or name == "close":
            return lambda *about: self.calls.append((name, *about))
        return super().__getattribute__(name)


def test_the_order_of_calls(tmp_path):
    seen = Everything()
    made = trainer(tmp_path, epochs=2, log_every=3, observers=[seen])
    history = made.fit()
    names = [name for name, *_ in seen.calls]
    # the first update, and each third
    assert names == ["on_start", "on_step", "on_step", "on_step", "on_save", "on_epoch", "on_step", "on_step", "on_save", "on_epoch", "on_end", "close"]
    assert [record.step for name, record in ((call[0], call[-1]) for call in seen.calls) if name == "on_step"] == [1, 3, 6, 9, 12]
    assert seen.calls[-2][1:] == (made, history) and seen.calls[4][1] == tmp_path / "last.pt"


def test_records_of_steps():
    seen = Losses()
    schedule = Cosine(lr=0.2, length=12, warmup=4)
    trainer(None, rich_task(), observers=[seen], schedule=schedule, clip_norm=1.0).fit()
    assert [record.step for record in seen.records] == list(range(1, 13))
    assert [record.epoch for record in seen.records] == pytest.approx([step / 6 for step in range(12)])
    assert [record.lr for record in seen.records] == [schedule(update) for update in range(12)]
    for record in seen.records:
        assert math.isfinite(record.loss) and record.grad_norm > 0 and record.images_per_second > 0 and record.memory > 1e6
        assert record.logs.keys() == {"drloc"}
        assert record.seconds["compute"] > 0 and record.seconds["data"] > 0


def test_records_of_epochs():
    history = trainer(None, epochs=3, eval_every=2, ema_decay=0.5, observers=[seen := Losses()]).fit()
    assert [record.epoch for record in history.epochs] == [1, 2, 3] and [record.step for record in history.epochs] == [6, 12, 18]
    # the last one is always evaluated
    assert [record.valid is None for record in history.epochs] == [True, False, False]
    assert history.epochs[1].ema.keys() == history.epochs[1].valid.keys() == {"loss", "top1", "top5"}
    means = [torch.tensor(seen.curve, dtype=torch.float64)[start : start + 6].mean().item() for start in (0, 6, 12)]
    assert [record.train["loss"] for record in history.epochs] == pytest.approx(means, rel=1e-6)
    assert all(record.seconds.keys() == {"data", "compute", "valid", "save"} for record in history.epochs)
    assert history.epochs[2].seconds["valid"] > 0 == history.epochs[0].seconds["valid"]


def test_rates_of_groups_keep_their_proportion():
    task = tiny_task()
    groups = [{"params": [param], "lr_scale": scale} for param, scale in zip(task.parameters(), (0.5**n for n in range(99)), strict=False)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    trainer(None, task, optimizer, schedule=lambda update: 0.1 * (update + 1), epochs=1).fit()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.6 * 0.5**n for n in range(len(groups))])


def scripted(values, **options):
    made = trainer(None, epochs=len(values), **options)
    metrics = iter(values)
    made.evaluate = lambda: {"top1": next(metrics), "loss": 1.0}
    return made.fit()


def test_early_stopping():
    history = scripted([1.0, 2.0, 2.0, 2.0, 3.0], patience=2)
    assert [record.best for record in history.epochs] == [True, True, False, False]
    assert history.best.epoch == 2 and "top1 was not better in the last 2 evaluations" in history.stopped
    assert not scripted([3.0, 2.0, 1.0], patience=2, monitor_mode="min").stopped
    # a metric that is no number is no improvement
    assert scripted([1.0, float("nan"), float("nan"), 9.0], patience=2).best.epoch == 1


def test_more_patience_goes_on_with_a_run_that_stopped(tmp_path):
    def stopped_after(values, resume, **options):
        made = trainer(tmp_path, epochs=4, **options)
        metrics = iter(values)
        made.evaluate = lambda: {"top1": next(metrics), "loss": 1.0}
        return (made.resume() if resume else made).fit()

    assert len(stopped_after([2.0, 1.0], False, patience=1).epochs) == 2
    assert len(stopped_after([], True, patience=1).epochs) == 2
    history = stopped_after([1.0, 3.0], True, patience=3)
    assert [record.epoch for record in history.epochs] == [1, 2, 3, 4] and not history.stopped


def test_the_average_is_what_is_judged():
    made = trainer(None, epochs=2, ema_decay=0.5)
    metrics = iter([{"top1": 0.9}, {"top1": 0.1}, {"top1": 0.1}, {"top1": 0.2}])
    made.evaluate = lambda: next(metrics)
    assert made.fit().best.epoch == 2


def test_an_unknown_metric_is_told():
    with pytest.raises(ValueError, match="monitor must be one of loss, top1, top5, got 'accuracy'"):
        trainer(None, epochs=1, monitor="accuracy").fit()
    with pytest.raises(ValueError, match="valid_loader must have samples, got none"):
        trainer(None, epochs=1, valid=[]).fit()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"precision": "float8"},
        {"accumulate": 0},
        {"clip_norm": 0.0},
        {"ema_decay": 1.0},
        {"parallel": "tensor"},
        {"monitor_mode": "up"},
        {"step_back_factor": 1.0},
        {"step_back": -1},
        {"clip_mode": "length"},
        {"parallel": "fsdp2", "channels_last": True},
    ],
    ids=str,
)
def test_settings_refuse(change):
    with pytest.raises(ValueError, match=f"Settings: {list(change)[-1]} must"):
        Settings(**change)


def test_settings_and_records_are_plain():
    assert dataclasses.replace(Settings(), epochs=3).epochs == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().epochs = 3
    assert all(not isinstance(value, torch.Tensor) for value in dataclasses.asdict(EpochRecord(epoch=1, step=2, train={})).values())


def test_incomplete_groups_end_an_epoch():
    seen = Losses()
    made = trainer(None, train=loader(20, 4), accumulate=2, epochs=2, observers=[seen])
    assert made.updates_per_epoch == 3 and made.total_updates == 6
    made.fit()
    assert [record.epoch for record in seen.records] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])


def test_every_name_is_there():
    for name in vt.train.__all__:
        assert getattr(vt.train, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vt.train.trian


SCRIPT = """
import sys
from pathlib import Path
from runs import loader, sam, tiny_task, trainer
from vtkernels.train import processes, distributed
with processes() as device:
    made = trainer(Path(sys.argv[1]), tiny_task(), sam, epochs=1)
    history = made.fit()
    assert distributed.world() == 2 and made.world == 2
    print("rank", distributed.rank(), history.epochs[0].train["loss"])
assert distributed.world() == 1
"""


def test_under_torchrun(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "script.py"), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = {line.split()[2] for line in done.stdout.splitlines() if line.startswith("rank")}
    assert len(losses) == 1
    assert vt.create_model(checkpoint=tmp_path / "run").load_report.complete


def test_what_could_never_happen_is_refused_before_training():
    def made(**options):
        return Trainer(tiny_task(), sgd, options.pop("schedule", None), loader(), options.pop("valid", None), Settings(**options))

    plateau = Plateau(lr=0.1)
    for schedule in (plateau, InEpochs(schedule=plateau, updates_per_epoch=6), Noisy(schedule=plateau)):
        with pytest.raises(ValueError, match="valid_loader must be given to a schedule that waits for a metric, got None; its rate would never fall"):
            made(schedule=schedule)
        made(schedule=schedule, valid=loader(train=False))
    with pytest.raises(ValueError, match="valid_loader must be given where patience is"):
        made(patience=2)
    made(schedule=InEpochs(schedule=Cosine(lr=0.1, length=2), updates_per_epoch=6))


def test_a_frozen_model_is_refused_before_training():
    task = tiny_task().requires_grad_(False)
    # before an optimizer is made for it, which would have words of its own
    with pytest.raises(ValueError, match="task must have a parameter that is trained, got none, or frozen ones only; requires_grad_"):
        trainer(None, task, lambda module: pytest.fail("too late"))
    task.model.head.requires_grad_(True)
    trainer(None, task)
