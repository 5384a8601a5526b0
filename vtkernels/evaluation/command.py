"""`vtkernels eval`: a checkpoint on a clean set, its corrupted copies, ImageNet's other test sets, negatives and attacks, in one go.

Every set that is done is kept; an interrupted evaluation goes on with the same command. Under torchrun processes share each set.
"""

import itertools
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from vtkernels._core.check import fail
from vtkernels.data import fgsm, pgd
from vtkernels.data.augment import sample_seed
from vtkernels.data.datasets import ImageDataset, Statistics, unlabelled
from vtkernels.data.loader import normalised
from vtkernels.evaluation import calibration, classification
from vtkernels.evaluation._journal import Journal
from vtkernels.evaluation._options import EvaluationOptions
from vtkernels.evaluation._progress import Progress
from vtkernels.evaluation._sets import ATTACKS, CLEAN, ImageSet, clean_set, loader_of, open_set_of, sets_of, statistics_of
from vtkernels.evaluation._summary import Summary
from vtkernels.evaluation.predictions import Predictions, predict
from vtkernels.evaluation.result import score
from vtkernels.evaluation.thresholds import ClassThresholds, choose_thresholds
from vtkernels.models import Model, create_model, model_config

__all__ = ["EvaluationOptions", "run"]

log = logging.getLogger("vtkernels")

# what a shell expects of a command that Ctrl-C ended
INTERRUPTED = 130


def run(options: EvaluationOptions) -> int:
    """Evaluate, print tables, and leave evaluation.json, plots and the clean set's result.json in the folder `out`."""
    with _process_group(), _terminable():
        options = options.resolved()
        clean = clean_set(options)
        device = _device(options)
        model, size = _model(options, clean)
        options = replace(options, size=size)
        sets = sets_of(options, clean)
        _check_classes(model.num_classes, sets)
        journal, done = _begun(options)
        waiting = [one for one in sets if one.name not in done]
        summary = Summary(options, len(clean.classes), [one.name for one in sets])
        bench = _Bench(model.to(device).eval(), options, clean, device)
        try:
            with Progress(len(sets), len(sets) - len(waiting), quiet=journal is None) as progress:
                for one in waiting:
                    metrics = bench.measured(one, progress)
                    if journal is not None:
                        journal.add(one.name, metrics)
        except KeyboardInterrupt:
            if journal is not None:
                summary.write(journal.done)
                print(f"interrupted: {len(journal.done)} of {len(sets)} sets are done and kept in {options.out}; the same command goes on", file=sys.stderr)
            return INTERRUPTED
        if journal is not None:
            summary.write(journal.done)
            print(summary.text(journal.done))
        return 0


def _begun(options: EvaluationOptions) -> tuple[Journal | None, list[str]]:
    """The journal, in the first process only, and which sets are done: others may not see its disk."""
    journal, told = None, [[], None]
    if _is_first():
        try:
            journal = Journal(options.out, options.meaning(), options.restart)
            told[0] = list(journal.done)
        except (ValueError, OSError) as refused:
            told[1] = refused
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast_object_list(told)
    done, refused = told
    if refused is not None:
        raise refused
    return journal, done


class _Bench:
    """A model on its device, and what it is tried on."""

    def __init__(self, model: nn.Module, options: EvaluationOptions, clean: ImageDataset, device: torch.device):
        self.model, self.options, self.clean, self.device = model, options, clean, device

    def measured(self, one: ImageSet, progress: Progress) -> dict[str, Any]:
        """All measures of one set."""
        dataset = one.build()
        with progress.during(one.name, len(dataset)) as advance:
            if one.name in ATTACKS:
                return self._score(self._attacked(dataset, advance), dataset, one)
            predictions = self._predictions(dataset, one.cut, advance)
            if one.name != CLEAN:
                return self._score(predictions, dataset, one)
            return self._clean(predictions, dataset, one)

    def _predictions(self, dataset: ImageDataset, cut: bool = False, advance: Any = None) -> Predictions:
        loader = loader_of(self.options, dataset, self.options.size, cut=cut, device=self.device)
        return predict(self.model, loader, precision=self.options.precision, progress=advance)

    def _score(self, predictions: Predictions, dataset: ImageDataset, one: ImageSet, **more: Any) -> dict[str, Any]:
        ids = getattr(dataset, "imagenet_ids", None)
        result = score(predictions, name=f"{self.options.data}: {one.name}", classes=dataset.classes, ids=None if ids is None else ids.tolist(), **more)
        if one.name == CLEAN and _is_first():
            result.save(self.options.out / CLEAN)
        return result.as_dict()["metrics"]

    def _clean(self, predictions: Predictions, dataset: ImageDataset, one: ImageSet) -> dict[str, Any]:
        """With what needs more than the set alone: a temperature, thresholds and open-set measures."""
        options, found, thresholds = self.options, {}, None
        negatives = self._negatives()
        valid = None
        if options.valid_split is not None:
            valid = self._predictions(open_set_of(options, options.data, options.path, options.valid_split, **options.data_options))
            temperature = calibration.fit_temperature(valid.logits, valid.targets)
            rescaled = predictions.logits.double() / temperature
            correct = classification.top_k_correct(predictions.logits, predictions.targets)
            found["temperature"] = temperature
            found["nll_tempered"] = calibration.negative_log_likelihood(rescaled, predictions.targets)
            found["ece_tempered"] = calibration.calibration_error(calibration.confidences(rescaled), correct)
        if negatives is not None:
            if valid is not None:
                # one half of the negatives chooses the thresholds, the other judges them
                choosing, negatives = (Predictions(negatives.logits[start::2], negatives.targets[start::2]) for start in (0, 1))
                thresholds = self._thresholds(_joined(valid, choosing))
                self._write_thresholds(thresholds)
            predictions = _joined(predictions, negatives)
        return self._score(predictions, dataset, one, thresholds=thresholds) | found

    def _negatives(self) -> Predictions | None:
        options = self.options
        if options.negatives is None:
            return None
        dataset = open_set_of(options, options.negatives, options.negatives_path, options.negatives_split)
        if len(dataset) < 2:
            fail("vtkernels eval", "negatives", "be at least two images", len(dataset))
        return self._predictions(unlabelled(dataset))

    def _thresholds(self, valid: Predictions) -> ClassThresholds:
        predicted = classification.predicted_classes(valid.logits)
        scores = calibration.confidences(valid.logits)
        return choose_thresholds(scores, predicted, valid.targets, valid.logits.shape[1], precision=self.options.threshold_precision)

    def _write_thresholds(self, thresholds: ClassThresholds) -> None:
        """By class; null where every prediction is rejected."""
        if not _is_first():
            return
        # of probabilities, 0 accepts all
        values = [None if value == math.inf else max(value, 0.0) for value in thresholds.values]
        folder = self.options.out / CLEAN
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "thresholds.json").write_text(json.dumps(dict(zip(self.clean.classes, values, strict=True)), indent=1) + "\n")

    def _attacked(self, dataset: ImageDataset, advance: Any) -> Predictions:
        options = self.options
        loader = loader_of(options, dataset, options.size, pixels=True, device=self.device)
        sampler = loader.batches.sampler
        places = itertools.count(sampler.rank, sampler.world)

        def attack(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            if options.attack == "fgsm":
                return fgsm(model, images, targets, options.epsilon)
            # a start of each image's own: neither batches nor processes have a say
            seeds = [sample_seed(options.seed, next(places)) for _ in range(len(images))]
            return pgd(model, images, targets, options.epsilon, steps=options.steps, generator=[torch.Generator().manual_seed(seed) for seed in seeds])

        model = _OfPixels(self.model, statistics_of(options, dataset))
        return predict(model, loader, precision=options.precision, attack=attack, progress=advance)


class _OfPixels(nn.Module):
    """A model of pixels in [0, 1], on which attacks are measured."""

    def __init__(self, model: nn.Module, statistics: Statistics):
        super().__init__()
        self.model, self.statistics = model, statistics

    def forward(self, images: Tensor) -> Tensor:
        return self.model(normalised(images, self.statistics))


def _joined(first: Predictions, second: Predictions) -> Predictions:
    return Predictions(torch.cat([first.logits, second.logits]), torch.cat([first.targets, second.targets]))


def _model(options: EvaluationOptions, clean: ImageDataset) -> tuple[Model, int]:
    size = options.size
    if size is None:
        own = getattr(model_config(options.model), "img_size", None)
        if not isinstance(own, int):
            fail("vtkernels eval", "size", f"be told for {options.model}", own, "try --size 224")
        size = own
    arguments = {"num_classes": len(clean.classes), "img_size": size, "checkpoint": options.checkpoint, **options.model_options}
    model = create_model(options.model, **arguments)
    if not isinstance(model, Model):
        fail("vtkernels eval", "model", "be a classifier of images", options.model, "vt.list_models() has all names")
    if options.checkpoint is None:
        log.warning("vtkernels eval: %s has random weights: no checkpoint was given", options.model)
    elif model.load_report.missing or model.load_report.mismatched:
        hint = "do --data and --size belong to these weights?"
        fail("vtkernels eval", f"checkpoint {options.checkpoint}", f"fill {options.model} of {len(clean.classes)} classes", f"{model.load_report}", hint)
    return model, size


def _check_classes(outputs: int, sets: list[ImageSet]) -> None:
    wrong = [one.name for one in sets if one.imagenet_classes]
    if wrong and outputs != 1000:
        fail("vtkernels eval", ", ".join(wrong), "be asked of a model of ImageNet's 1000 classes", f"one of {outputs}")


def _is_first() -> bool:
    return not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0


def _device(options: EvaluationOptions) -> torch.device:
    if options.device is not None:
        try:
            # a device that torch knows may still not be there
            return torch.empty(0, device=options.device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"vtkernels eval: device: expected one of this machine, got {options.device!r}; try --device cpu") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


@contextmanager
def _process_group() -> Iterator[None]:
    """Join the other processes that torchrun started, unless that has been done."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not distributed.is_available() or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _terminable() -> Iterator[None]:
    """A request to end is taken as Ctrl-C: what is done is kept and summed up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
