"""One update of the weights from some batches."""

import contextlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vtkernels._core import check
from vtkernels.optim.clip import clip_grad_adaptive_, clip_grad_norm_, clip_grad_value_
from vtkernels.optim.groups import head_parameters
from vtkernels.train import distributed
from vtkernels.train.errors import NonFiniteLoss
from vtkernels.train.precision import Precision
from vtkernels.train.settings import Settings

Batch = tuple[Tensor, Any]


class Result(NamedTuple):
    """Of an update, on the device."""

    loss: Tensor
    images: int
    grad_norm: Tensor | None
    logs: dict[str, Tensor]


class Update:
    """Forward, backward, clipping and the optimizer's step; the gradient is that of the mean over all samples of the batches.

    An optimizer with a method `perturbed`, such as `vtkernels.optim.SAM`, gets its second pass over the same batches; one with `both_passes`,
    such as `vtkernels.optim.ESAM`, makes both by itself, from the losses of the samples.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, settings: Settings):
        self._chooses_samples = hasattr(optimizer, "both_passes")
        if self._chooses_samples and (settings.accumulate > 1 or distributed.world() > 1):
            got = f"accumulate {settings.accumulate} and {distributed.world()} processes"
            check.fail("Trainer", type(optimizer).__name__, "see the samples of an update as one batch in one process", got, "take SAM with every=2")
        self.module, self.optimizer, self.precision = module, optimizer, precision
        self.clip_norm, self.clip_mode = settings.clip_norm, settings.clip_mode
        model = distributed.bare(module).model
        self.channels_last = distributed.wants_channels_last(model, settings)
        self.unclipped = head_parameters(model) if self.clip_mode == "adaptive" else ()
        self.params = [param for group in optimizer.param_groups for param in group["params"]]
        self._is_sharded = hasattr(module, "set_requires_gradient_sync")
        # to stop before the weights are touched costs nothing here; elsewhere it would wait for the device, or leave other processes waiting
        self.stops_at_once = precision.device.type == "cpu" and distributed.world() == 1

    def __call__(self, batches: list[Batch], epoch: float, measure: bool = False) -> Result:
        """`measure`: the norm of the gradients is wanted even where nothing is clipped."""
        scaler, optimizer = self.precision.scaler, self.optimizer
        if self._chooses_samples:
            loss, logs = self._passes_over_samples(*batches[0], epoch)
        else:
            loss, logs = self._pass(batches, epoch)
            if hasattr(optimizer, "perturbed"):
                with optimizer.perturbed() as wanted:
                    if wanted:
                        self._pass(batches, epoch)
        norm = None
        if self.clip_norm is not None or measure:
            scaler.unscale_(optimizer)
            norm = self._limited()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return Result(loss, sum(len(targets) for _, targets in batches), norm, logs)

    def _pass(self, batches: list[Batch], epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        total = sum(len(targets) for _, targets in batches)
        losses, logs = None, {}
        for number, (images, targets) in enumerate(batches, 1):
            share = len(targets) / total
            with self._exchange(last=number == len(batches)):
                with self.precision.forward():
                    outcome = self.module(self._laid_out(images), targets, epoch)
                loss, told = outcome.loss * share if len(batches) > 1 else outcome.loss, outcome.logs
                # its logits and features would keep their memory until the end of the backward, which needs it
                del outcome
                self._backward(loss)
            losses = loss.detach() if losses is None else losses + loss.detach()
            for name, value in told.items():
                logs[name] = logs.get(name, 0.0) + value * share
        return losses, logs

    def _passes_over_samples(self, images: Tensor, targets: Tensor, epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        logs: dict[str, Tensor] = {}

        def losses(chosen: Tensor | None) -> Tensor:
            some, theirs = (images, targets) if chosen is None else (images[chosen], targets[chosen])
            with self.precision.forward():
                outcome = self.module(self._laid_out(some), theirs, epoch)
            if outcome.losses is None or len(outcome.losses) != len(some):
                expected = f"tell the loss of each image to {type(self.optimizer).__name__}"
                got = "one of the batch" if outcome.losses is None else f"{len(outcome.losses)} for {len(some)} images"
                check.fail("Trainer", "the task", expected, got, 'try ClassificationTask with a criterion of reduction="none"')
            # those of the first pass
            logs.update(outcome.logs | logs)
            return outcome.losses

        return self.optimizer.both_passes(losses, self._backward), logs

    def _backward(self, loss: Tensor) -> None:
        if self.stops_at_once and not math.isfinite(loss.item()):
            self.optimizer.zero_grad()
            raise NonFiniteLoss(f"the loss is {loss.item()}")
        self.precision.scaler.scale(loss).backward()

    def _exchange(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes exchange their gradients in the last backward only."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        if self._is_sharded:
            self.module.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last and images.dim() == 4 else images

    def _limited(self) -> Tensor:
        """The norm that the gradients had before they were limited, if they were."""
        if self.clip_norm is not None and self.clip_mode == "norm":
            return clip_grad_norm_(self.params, self.clip_norm)
        norm = nn.utils.get_total_norm([param.grad for param in self.params if param.grad is not None])
        if self.clip_norm is not None and self.clip_mode == "value":
            clip_grad_value_(self.params, self.clip_norm)
        elif self.clip_norm is not None:
            clip_grad_adaptive_(self.params, self.clip_norm, exclude=self.unclipped)
        # of sharded gradients, over all processes
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
