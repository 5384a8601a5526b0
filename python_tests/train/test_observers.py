"""What is told of a run while it goes: the log, TensorBoard, the terminal."""

import io
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from observed_runs import trainer_of

from vtkernels.train import EpochRecord, Observer, StepRecord
from vtkernels.train.observers import JsonLines, Progress, Report, TensorBoard, read_log, usual_observers, words


def step_record(step: int, **values) -> StepRecord:
    return StepRecord(**{"step": step, "epoch": step / 3, "loss": 1.0, "lr": 0.1, "images_per_second": 50.0, "memory": 10**9, **values})


def at(update: int, epochs=(), **values) -> SimpleNamespace:
    """A trainer that stands at an update."""
    history = SimpleNamespace(epochs=list(epochs), best=None, stopped="")
    return SimpleNamespace(progress=SimpleNamespace(update=update), history=history, **values)


def test_the_log_tells_all(tmp_path):
    trainer_of(tmp_path, [JsonLines(tmp_path)], clip_norm=1.0).fit()
    lines = read_log(tmp_path)
    assert [json.loads(text)["kind"] for text in (tmp_path / "log.jsonl").read_text().splitlines()] == [line["kind"] for line in lines]
    steps, epochs = ([line for line in lines if line["kind"] == kind] for kind in ("step", "epoch"))
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in epochs] == [3, 6]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["memory"] > 0 for line in steps)
    assert set(epochs[0]["valid"]) == {"loss", "top1", "top5"}
    assert lines[0]["kind"] == "start"
    assert lines[-1]["kind"] == "end"
    assert lines[-1]["best"] in (1, 2)
    assert "save" in {line["kind"] for line in lines}


def test_a_log_that_goes_on_has_no_gap_and_nothing_twice(tmp_path):
    first = JsonLines(tmp_path)
    first.on_start(at(0))
    for step in range(1, 8):
        first.on_step(step_record(step, loss=float(step)))
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    # killed after the checkpoint of update 5, which ended epoch 1, and before the line of that epoch was written
    second = JsonLines(tmp_path)
    second.on_start(at(5, [EpochRecord(epoch=1, step=5, train={"loss": 0.5})]))
    second.on_step(step_record(6, loss=float("nan")))
    second.close()
    lines = read_log(tmp_path)
    steps = [("step", step) for step in range(1, 6)]
    assert [(line["kind"], line["step"]) for line in lines] == [("start", 0), *steps, ("epoch", 5), ("start", 5), ("step", 6)]
    assert lines[-1]["loss"] is None
    # a run from the start leaves nothing of another one
    third = JsonLines(tmp_path)
    third.on_start(at(0))
    third.close()
    assert [line["kind"] for line in read_log(tmp_path)] == ["start"]


def test_a_full_disk_costs_the_log_only(tmp_path, caplog):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    observer = JsonLines(tmp_path)
    observer.on_start(at(0))
    observer.close()
    observer._file = Full()
    with caplog.at_level(logging.WARNING, "vtkernels"):
        observer.on_step(step_record(1))
        observer.on_step(step_record(2))
        observer.close()
    assert len(caplog.records) == 1
    assert "log.jsonl cannot be written" in caplog.text
    assert "No space left on device" in caplog.text


def test_tensorboard_has_the_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer_of(None, [TensorBoard(tmp_path)], ema_decay=0.5, clip_norm=1.0).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "valid/top1", "ema/top1", "epoch/loss", "seconds/compute"}
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("valid/top1")] == [3, 6]


def test_tensorboard_forgets_what_lies_beyond(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for update, steps in ((0, range(1, 8)), (4, range(5, 7))):
        observer = TensorBoard(tmp_path)
        observer.on_start(at(update))
        for step in steps:
            observer.on_step(step_record(step, loss=float(update)))
        observer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 4), (6, 4)]


def test_lines_without_a_terminal():
    stream = io.StringIO()
    trainer_of(None, [Progress(stream, every=0.0)], ema_decay=0.5, patience=5).fit()
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"CifarResNet, 0.0\d M parameters, 6 updates on cpu", lines[0])
    assert re.fullmatch(r"epoch 1/2, update 1/6: loss [\d.]+  [\d.]+ s left  [\d.,]+ images/s  lr 5.00e-02  [\d.]+ [GM]B", lines[1])
    assert re.match(r"epoch 1/2: loss [\d.]+  valid loss [\d.]+  valid top1 [\d.]+ %  ema loss [\d.]+  ema top1 [\d.]+ %  [\d.]+ s  best so far", lines[4])
    assert re.match(r"trained in [\d.]+ s; best top1 [\d.]+ % in epoch [12]", lines[-1])
    assert "\x1b" not in stream.getvalue()


def test_few_lines_by_default():
    stream = io.StringIO()
    trainer_of(None, [Progress(stream)], valid=False).fit()
    assert len(stream.getvalue().splitlines()) == 4


def test_a_terminal_gets_a_live_line(monkeypatch):
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    progress = Progress(stream)
    trainer_of(None, [progress]).fit()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    assert "epoch 2/2" in text
    assert re.search(r"loss [\d.]+  top1 [\d.]+ %  [\d.]+ s left  [\d.,]+ images/s  lr 5.00e-02", text)
    assert "trained in" in text
    assert progress._live is None


def test_other_processes_are_silent():
    stream = io.StringIO()
    progress = Progress(stream)
    progress.on_start(at(0, rank=1))
    progress.on_step(step_record(1))
    progress.on_epoch(EpochRecord(epoch=1, step=1, train={}))
    progress.close()
    assert stream.getvalue() == ""


def test_observers_do_not_change_the_run(tmp_path):
    """Nor does a report, which looks at the validation set once more, with the averaged weights."""
    losses = []
    for observers in ([], usual_observers(tmp_path / "told", progress=False)):
        trainer = trainer_of(None, observers, ema_decay=0.5)
        history = trainer.fit()
        losses.append(([epoch.train["loss"] for epoch in history.epochs], [param.clone() for param in trainer.model.parameters()]))
    assert losses[0][0] == losses[1][0]
    assert all(map(torch.equal, losses[0][1], losses[1][1]))
    assert (tmp_path / "told" / "report.html").exists()


def test_an_interrupted_run_closes_its_observers(tmp_path):
    class Stop(Observer):
        def on_step(self, record):
            raise KeyboardInterrupt

    observer = JsonLines(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(None, [observer, Stop()]).fit()
    assert observer._file is None
    assert [line["kind"] for line in read_log(tmp_path)] == ["start", "step"]


def test_the_usual_observers(tmp_path):
    assert [type(observer) for observer in usual_observers(tmp_path)] == [Progress, JsonLines, TensorBoard, Report]
    assert [type(observer) for observer in usual_observers(None)] == [Progress]
    assert [type(observer) for observer in usual_observers(tmp_path, progress=False, tensorboard=False, report=False)] == [JsonLines]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    from vtkernels._core.plots import figure
    from vtkernels.train.observers.progress import _live_line

    for name in ("rich.console", "torch.utils.tensorboard", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"TensorBoard: expected tensorboard to be installed.*vtkernels\[train\]"):
        TensorBoard(tmp_path)
    with pytest.raises(ImportError, match=r"Progress: expected rich to be installed.*vtkernels\[train\]"):
        _live_line(sys.stdout)
    with pytest.raises(ImportError, match=r"plots: expected matplotlib to be installed.*vtkernels\[train\]"), figure(tmp_path / "a.png"):
        pass


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (59.7, "1:00 min"), (3599.7, "1:00:00"), (3700, "1:01:40"), (90000, "1 d 01 h"), (float("inf"), "?")],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_numbers_as_people_read_them():
    assert words.shown("top1", 0.98765) == "98.77 %"
    assert words.shown("loss", 0.123456) == "0.1235"
    assert words.shown("top1", float("nan")) == "nan"
    assert [words.memory(size) for size in (3_000_000, 2_500_000_000)] == ["3 MB", "2.5 GB"]
    assert [words.rate(value) for value in (3.14159, 12345.6)] == ["3.14 images/s", "12,346 images/s"]
