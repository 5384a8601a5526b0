"""When what happens in training; what is learnt and with which values, tasks and recipes say."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.optim.early_stopping import EarlyStopping
from vtkernels.optim.ema import Ema
from vtkernels.optim.schedules import Schedule, set_lr
from vtkernels.train import distributed
from vtkernels.train.errors import Interrupted, LoaderDied, NonFiniteLoss
from vtkernels.train.folder import RunFolder
from vtkernels.train.precision import Precision
from vtkernels.train.random_state import be_deterministic, seed_all
from vtkernels.train.records import EpochRecord, History, Observer
from vtkernels.train.reporting import Reporter
from vtkernels.train.settings import Settings
from vtkernels.train.signals import NAMES, StopSignals
from vtkernels.train.state import Progress, restore, state_of
from vtkernels.train.update import Batch, Result, Update
from vtkernels.train.validation import StopValidation, finite, validate

log = logging.getLogger("vtkernels")


class Trainer:
    """Trains a task.

        trainer = Trainer(task, make_optimizer, schedule, train_loader, valid_loader, Settings(epochs=10), folder="runs/first")
        history = trainer.fit()

    Args:
        task: or what `prepare` made of it.
        optimizer: or a function that makes it for the prepared task: of several processes, parameters may be sharded by then, and SAM is to
            be given the wrapped task as its `model`.
        schedule: update -> learning rate, see `vtkernels.optim.schedules`. None leaves the optimizer's alone.
        train_loader: of `vtkernels.data.create_loader`: it can go on at any batch.
        valid_loader: batches (images, targets); None evaluates nothing.
        settings: see there.
        folder: where checkpoints go; None keeps none.
        observers: told of what happens; the first process's only.
        config: saved with each checkpoint, plain values: what is needed to build all of this again.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer | Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int], float] | None,
        train_loader: Any,
        valid_loader: Iterable | None = None,
        settings: Settings | None = None,
        *,
        folder: str | Path | None = None,
        observers: Iterable[Observer] = (),
        config: dict[str, Any] | None = None,
        device: torch.device | None = None,
    ):
        for name in ("set_epoch", "state_dict", "load_state_dict"):
            if not hasattr(train_loader, name):
                check.fail("Trainer", "train_loader", f"have {name}()", type(train_loader).__name__, "make it with vtkernels.data.create_loader", TypeError)
        if not any(param.requires_grad for param in task.parameters()):
            hint = "requires_grad_(True) of its head lets that learn"
            check.fail("Trainer", "task", "have a parameter that is trained", "none, or frozen ones only", hint)
        self.settings, self.schedule, self.config = settings or Settings(), schedule, config or {}
        if valid_loader is None:
            self._refuse_what_needs_a_metric()
        self.train_loader, self.valid_loader = train_loader, valid_loader
        self.device = device or distributed.this_device()
        if self.device.type == "cuda" and self.device.index is not None:
            # random numbers are saved and replayed of the current one
            torch.cuda.set_device(self.device)
        self.rank, self.world = distributed.rank(), distributed.world()
        if self.settings.deterministic:
            be_deterministic()
        self.module = distributed.prepare(task, self.settings, self.device)
        self.task = distributed.bare(self.module)
        self.folder = Path(folder) if folder is not None else None
        self.files = RunFolder(self.folder, self.task) if folder is not None else None
        self.optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(self.module)
        self.ema = None if self.settings.ema_decay is None else Ema(self.model, decay=self.settings.ema_decay, warmup=self.settings.ema_warmup)
        self.precision = Precision(self.settings.precision, self.device)
        self._update = Update(self.module, self.optimizer, self.precision, self.settings)
        self.stopping = EarlyStopping(patience=self.settings.patience, min_delta=self.settings.min_delta, mode=self.settings.monitor_mode)
        self.reporter = Reporter(observers if self.rank == 0 else (), self.device)
        self.progress, self.history = Progress(), History()
        self.updates_per_epoch = math.ceil(len(train_loader) / self.settings.accumulate)
        # of the epoch under way, over its samples, on the device: it is not finite any more once a loss was not
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.loader_state = train_loader.state_dict()
        self._signals, self._saved_at, self._resumed, self._between_updates = StopSignals(), time.monotonic(), False, True

    def _refuse_what_needs_a_metric(self) -> None:
        if isinstance(self.schedule, Schedule) and self.schedule.needs_metric:
            check.fail("Trainer", "valid_loader", "be given to a schedule that waits for a metric", None, "its rate would never fall; take Cosine, say")
        if self.settings.patience is not None:
            check.fail("Trainer", "valid_loader", "be given where patience is", None, "training would never stop early; set patience to None")

    @property
    def model(self) -> nn.Module:
        return self.task.model

    @property
    def total_updates(self) -> int:
        return self.settings.epochs * self.updates_per_epoch

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def resume(self, path: str | Path | None = None) -> "Trainer":
        """Take up a run where its checkpoint left it: a file, the folder of a run, or None for the trainer's own."""
        if path is None and self.folder is None:
            check.fail("Trainer.resume", "path", "be given", None, "this trainer has no folder of its own")
        files = self.files or RunFolder(Path(path), self.task)
        restore(self, files.read(Path(path) if path is not None else None))
        self._resumed = True
        return self

    def fit(self) -> History:
        """Train to the end, or to what stops it; the history of all epochs.

        Raises:
            Interrupted: after SIGTERM or Ctrl-C, when the run is saved.
            NonFiniteLoss, CheckpointError, LoaderDied: the last good checkpoint is there, and the message says what to do.
        """
        with self._signals:
            try:
                self._begin()
                self.reporter.tell("on_start", self)
                while self.progress.epoch < self.settings.epochs and not self.history.stopped:
                    self._epoch_or_back()
                self.reporter.tell("on_end", self, self.history)
            finally:
                self.reporter.tell("close")
        return self.history

    # ---- an epoch --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.files is not None:
            self.files.prepare()
        if not self._resumed:
            if self.files is not None and self.files.holds_run:
                hint = f"resume() it, vtkernels train --resume {self.folder} on the command line, or take another folder"
                check.fail("Trainer.fit", "folder", "hold no run yet", str(self.folder), hint, FileExistsError)
            seed_all(self.settings.seed + self.rank)
            if self.settings.step_back:
                self.save()
        self._saved_at = time.monotonic()

    def _epoch_or_back(self) -> None:
        try:
            self.run_epoch()
        except NonFiniteLoss as error:
            self._step_back(error)
        except (RuntimeError, ConnectionError) as error:
            # where a worker dies with a batch on its way, what breaks is the connection to it
            if "DataLoader worker" not in str(error) and not isinstance(error, ConnectionError):
                raise
            # noticed between two updates, all that is needed to go on is still here
            if self._between_updates and self.world == 1 and self.files is not None:
                self.save()
            hint = "was it killed for want of memory? Fewer workers or smaller batches need less"
            raise LoaderDied(f"a worker of the loader died in epoch {self.progress.epoch} ({error}); {hint}. {self._how_to_resume()}") from error

    def run_epoch(self) -> None:
        """One epoch, from where it stands, with what follows it; `fit` does so until the end."""
        self.module.train()
        self.reporter.begin_epoch(self.progress.images)
        if not self.progress.all_read:
            self.train_loader.set_epoch(self.progress.epoch)
            for batches in self._groups():
                self._make_update(batches)
        try:
            self._end_epoch()
        except StopValidation:
            self._save_and_leave(self._signals.asked)

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of one update after the other; the last ones of an epoch may be fewer."""
        batches = iter(self.train_loader)
        while True:
            with self.reporter.during("data"):
                group = [(_moved(images, self.device), _moved(targets, self.device)) for images, targets in islice(batches, self.settings.accumulate)]
            if not group:
                return
            yield group

    def _make_update(self, batches: list[Batch]) -> None:
        progress, settings = self.progress, self.settings
        if self.schedule is not None:
            set_lr(self.optimizer, self.schedule(progress.update) * progress.lr_factor)
        epoch = progress.epoch + progress.in_epoch / self.updates_per_epoch
        told = progress.update == 0 or (progress.update + 1) % settings.log_every == 0
        with self.reporter.during("compute"):
            self._between_updates = False
            result = self._update(batches, epoch, measure=told)
            if self.ema is not None:
                self.ema.update(self.model, self.optimizer)
            progress.update += 1
            progress.in_epoch += 1
            progress.images += result.images
            progress.all_read = len(batches) < settings.accumulate
            self.loss_sum.add_(result.loss, alpha=result.images)
            self.loader_state = self.train_loader.state_dict()
            self._between_updates = True
        by_updates = settings.save_every_updates is not None and progress.update % settings.save_every_updates == 0
        if told or self.world == 1:
            self._look_up(result if told else None, epoch, by_updates)
        elif by_updates:
            self.save()

    def _look_up(self, result: Result | None, epoch: float, save: bool) -> None:
        """Between two updates: tell, stop and save, all processes alike."""
        minutes = self.settings.save_every_minutes
        asked = self._signals.asked
        save = save or (minutes is not None and time.monotonic() - self._saved_at > 60 * minutes)
        if result is not None:
            images = self.reporter.new_images(self.progress.images)
            loss, loss_sum, images, signals, saves = distributed.totals([result.loss, self.loss_sum, images, asked, save], self.device)
            asked, save = asked or int(signals > 0) * signal.SIGTERM, saves > 0
            if not math.isfinite(loss_sum):
                raise NonFiniteLoss(f"the loss is {loss}" if not math.isfinite(loss) else "a loss since the last record was not finite")
            self.reporter.step(self.progress.update, epoch, loss / self.world, float(self.optimizer.param_groups[0]["lr"]), images, result)
        if self.world == 1:
            asked = self._signals.asked
        if asked:
            self._save_and_leave(asked)
        if save:
            self.save()

    def _save_and_leave(self, signum: int) -> None:
        self.save()
        told = Interrupted(signum, f"stopped by {NAMES[signum]} after update {self.progress.update}. {self._how_to_resume()}")
        if self.is_main:
            # uncaught, it would end the process without a word
            log.warning("%s", told)
        raise told

    def _end_epoch(self) -> None:
        progress, settings = self.progress, self.settings
        loss_sum, images = distributed.totals([self.loss_sum, progress.images], self.device)
        if not math.isfinite(loss_sum):
            raise NonFiniteLoss("a loss of this epoch was not finite")
        record = EpochRecord(epoch=progress.epoch + 1, step=progress.update, train={"loss": loss_sum / max(images, 1)})
        if self.valid_loader is not None and (record.epoch % settings.eval_every == 0 or record.epoch == settings.epochs):
            with self.reporter.during("valid"):
                self._validate(record)
            self._judge(record)
        progress.epoch, progress.in_epoch, progress.images, progress.all_read = record.epoch, 0, 0, False
        self.loss_sum.zero_()
        self.train_loader.set_epoch(progress.epoch)
        self.loader_state = self.train_loader.state_dict()
        # the time of the saving below is still added to it
        record.seconds = self.reporter.of_epoch.seconds
        self.history.epochs.append(record)
        self.save(best=record.best)
        self.reporter.tell("on_epoch", record)

    def evaluate(self) -> dict[str, float]:
        """The task's metrics over the validation set, with the weights as they are."""
        return validate(self.task, self.valid_loader, self.precision, self.device, self._stop_alone)

    def _validate(self, record: EpochRecord) -> None:
        record.valid = self.evaluate()
        if self.ema is not None:
            with self._averaged():
                record.ema = self.evaluate()

    def _stop_alone(self) -> None:
        """Leave at once if asked to; several processes would have to agree on it first."""
        if self._signals.asked and self.world == 1:
            raise StopValidation

    def _judge(self, record: EpochRecord) -> None:
        metrics = record.ema or record.valid
        if not metrics:
            check.fail("Trainer", "valid_loader", "have samples", "none", "None evaluates nothing")
        if self.settings.monitor not in metrics:
            check.fail("Settings", "monitor", f"be one of {', '.join(metrics)}", repr(self.settings.monitor), "these are what the task evaluates")
        metric = metrics[self.settings.monitor]
        record.best = self.stopping.update(metric)
        if isinstance(self.schedule, Schedule):
            self.schedule.observe(metric, self.progress.update)
        if self.stopping.should_stop:
            self.history.stopped = f"{self.settings.monitor} was not better in the last {self.stopping.counter} evaluations"

    # ---- saving and going back -------------------------------------------------------------------------------------------

    def save(self, best: bool = False) -> None:
        """A checkpoint of now, between two updates; the best one also as weights for others."""
        if self.files is None:
            return
        if not finite(self.task):
            raise NonFiniteLoss("a weight is not finite")
        with self.reporter.during("save"):
            path = self.files.write(state_of(self), best)
            if best or (self.valid_loader is None and self.progress.epoch == self.settings.epochs):
                with self._averaged():
                    self.files.export(self.model)
        self._saved_at = time.monotonic()
        self.reporter.tell("on_save", path)

    def export(self, name: str) -> None:
        """The weights of now, averaged ones if there are, for others to load: a folder in the run's."""
        if self.files is None:
            check.fail("Trainer.export", "folder", "be given to the trainer", None)
        with self._averaged():
            self.files.export(self.model, name)

    def _step_back(self, error: NonFiniteLoss) -> None:
        progress, settings = self.progress, self.settings
        where = f"{error} in update {progress.update} (epoch {progress.epoch})"
        if self.files is None or progress.steps_back >= settings.step_back:
            hint = "try a lower learning rate, a longer warm-up, clip_norm, bfloat16 instead of float16, or step_back"
            raise NonFiniteLoss(f"{where}; {hint}. {self._how_to_resume()}") from error
        factor, steps_back = progress.lr_factor * settings.step_back_factor, progress.steps_back + 1
        restore(self, self.files.read())
        progress.lr_factor, progress.steps_back = factor, steps_back
        log.warning("%s; back to update %d, and on with %g times the learning rate", where, progress.update, factor)

    def _how_to_resume(self) -> str:
        return self.files.how_to_resume() if self.files is not None else "There is no folder to save to"

    def _averaged(self) -> contextlib.AbstractContextManager:
        """Inside, the model has its averaged weights, if there are any."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied(self.model)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
