"""What several analyses do with a model that may be anybody's: evaluate it, batch by batch, and look at what its classifier is given."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels._core.check import fail


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every layer is in the mode it was in."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def batches(model: nn.Module, loader: Iterable[Any], who: str) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, targets) on the model's device, images in its precision; an error if there are none, or the model's weights are no numbers."""
    check_weights(model, who)
    count = 0
    for images, targets in loader:
        count += len(images)
        if targets.dim() != 1:
            fail(who, "targets", "be class numbers", f"shape {list(targets.shape)}", "take a loader without mixing")
        if len(images):
            images = as_of(model, images)
            yield images, targets.to(images.device)
    if not count:
        fail(who, "loader", "give at least one image", "none", "is the split empty, or drop_last set?")


def as_of(model: nn.Module, images: Tensor) -> Tensor:
    """On the model's device, and in its precision where they are numbers at all."""
    own = next((tensor for tensor in itertools.chain(model.parameters(), model.buffers()) if tensor.is_floating_point()), images)
    return images.to(own) if images.is_floating_point() else images.to(own.device)


def check_weights(model: nn.Module, who: str) -> None:
    # other buffers, such as masks, may well hold infinities
    statistics = ((name, value) for name, value in model.named_buffers() if "running_" in name)
    unfit = [name for name, value in itertools.chain(model.named_parameters(), statistics) if not value.isfinite().all()]
    if unfit:
        fail(who, "model", "have finite weights", f"NaN or infinity in {', '.join(unfit[:3])}", "did its training diverge?")


def classifier(model: nn.Module) -> nn.Module:
    """The layer that turns features into logits."""
    if names := getattr(model, "classifiers", ()):
        return model.get_submodule(names[0])
    if callable(ask := getattr(model, "get_classifier", None)) and isinstance(found := ask(), nn.Linear):
        return found
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        fail("features", "model", "have a Linear layer as classifier", f"none in {type(model).__name__}")
    return linear[-1]


def penultimate(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(features [B, D], logits): what the classifier is given, and what it makes of it, in whatever mode the model is."""
    seen: list[Tensor] = []
    handle = classifier(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        logits = model(images)
    finally:
        handle.remove()
    if not seen:
        fail("features", "model", "run its classifier once", "a forward pass without it")
    return torch.flatten(seen[0], 1), logits


__all__ = ["as_of", "batches", "check_weights", "classifier", "evaluating", "penultimate"]
