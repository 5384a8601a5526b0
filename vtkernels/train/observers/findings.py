"""What a trained model does with the validation set: its mistakes, and what it looks at."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels.models import Model

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer


@dataclass
class Example:
    """One image [C, H, W] in 0..1, and what the model made of it."""

    image: Tensor
    label: int
    predicted: int
    confidence: float
    loss: float


@dataclass
class Findings:
    """Predictions over a validation set.

    Attributes:
        labels, predicted: [N].
        classes: names.
        worst: examples of the highest loss, the worst first.
        samples: a few images as the model gets them, of different classes where the first batch has several.
        shown: the same as pictures.
    """

    labels: Tensor
    predicted: Tensor
    classes: list[str]
    worst: list[Example]
    samples: Tensor
    shown: Tensor

    def confusion(self) -> Tensor:
        """[K, K]: how many of each class (row) were taken for which (column)."""
        count = len(self.classes)
        return torch.bincount(self.labels * count + self.predicted, minlength=count * count).reshape(count, count)


@torch.no_grad()
def look(trainer: "Trainer", loader: Iterable, *, num_worst: int = 20, num_samples: int = 5) -> Findings:
    """One pass over the batches of this process, with the weights as they are."""
    trainer.task.eval()
    statistics = getattr(loader, "statistics", None)
    labels, predicted = [], []
    worst: list[Example] = []
    samples = shown = None
    num_classes = 0
    for images, targets in loader:
        images = images.to(trainer.device)
        with trainer.precision.forward():
            logits = trainer.model(images)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise ValueError(f"the model answers with {_kind(logits)}, which are no logits of classes")
        truth = targets.float().argmax(1).cpu() if targets.dim() == 2 else targets.cpu()
        # images of none of the classes have no right answer
        known = (truth >= 0) & (truth < logits.shape[1])
        images, logits, truth = images[known.to(images.device)], logits.float().cpu()[known], truth[known]
        losses = F.cross_entropy(logits, truth, reduction="none")
        answers, confidences = logits.argmax(1), logits.softmax(1).amax(1)
        num_classes = logits.shape[1]
        labels.append(truth)
        predicted.append(answers)
        # a loss that is not a number is the worst of all
        order = losses.nan_to_num(nan=torch.inf).argsort(descending=True)[:num_worst]
        pictures = as_pictures(images[order.to(images.device)], statistics)
        facts = (truth[order], answers[order], confidences[order], losses[order])
        worst += [Example(picture, *(fact[i].item() for fact in facts)) for i, picture in enumerate(pictures)]
        worst = sorted(worst, key=lambda example: -example.loss if example.loss == example.loss else -torch.inf)[:num_worst]
        if samples is None and len(truth):
            samples = images[_varied(truth, num_samples).to(images.device)]
            shown = as_pictures(samples, statistics)
    if samples is None:
        raise ValueError("the validation set is empty")
    return Findings(torch.cat(labels), torch.cat(predicted), class_names(loader, num_classes), worst, samples, shown)


def class_names(loader: Any, count: int) -> list[str]:
    """Of the loader's data set, or numbers."""
    dataset = getattr(getattr(loader, "samples", loader), "dataset", None)
    names = getattr(dataset, "classes", None)
    return [str(name) for name in names] if names is not None and len(names) == count else [str(index) for index in range(count)]


def as_pictures(images: Tensor, statistics: Any = None) -> Tensor:
    """Images [B, C, H, W] as the model gets them, as pixels in 0..1: by what they were normalised with, or each stretched to its extremes."""
    images = images.float().cpu()
    if statistics is not None and len(statistics.mean) in (1, images.shape[1]):
        mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
        return (images * std + mean).clamp(0, 1)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return ((images - low) / (high - low).clamp(min=1e-8)).nan_to_num().clamp(0, 1)


@torch.no_grad()
def attention_or_maps(model: torch.nn.Module, images: Tensor) -> tuple[str, dict[str, Tensor]]:
    """What a model looks at, as maps [B, H, W] by name, from early to late: class-token attention where it has that, else feature maps."""
    if not isinstance(model, Model):
        raise ValueError(f"{type(model).__name__} is no model of vtkernels.create_model")
    model.eval()
    if model.prefix_tokens and any(hasattr(module, "attention_weights") for module in model.modules()):
        count = sum(model.sees_class_token(name) for name in model.attention_maps(images))
        layers = sorted({round(share * (count - 1)) for share in (0, 1 / 3, 2 / 3, 1)})
        maps = {f"layer {layer + 1} of {count}": model.get_attention(images, layer).float().mean(1) for layer in layers}
        return "Where the class token looks: attention to the patches, mean over heads", maps
    try:
        stages = model.forward_maps(images)
    except NotImplementedError:
        stages = [_last_map(model, images)]
    maps = {f"stage {number}, {stage.shape[2]} x {stage.shape[3]}": stage.float().norm(dim=1) for number, stage in enumerate(stages, 1)}
    return "Length of the features at each place, from early to late", maps


def _last_map(model: Model, images: Tensor) -> Tensor:
    features = model.forward_features(images)
    if features.dim() == 4:
        return features
    rows, columns = model.grid(images)
    return features[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def _varied(labels: Tensor, count: int) -> Tensor:
    """Places of `count` labels, different ones as far as there are."""
    seen, first, rest = set(), [], []
    for place, label in enumerate(labels.tolist()):
        (rest if label in seen else first).append(place)
        seen.add(label)
    return torch.tensor((first + rest)[:count])


def _kind(answer: Any) -> str:
    return f"shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
