"""A model that others learn from, out of whatever holds its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from torch import Tensor, nn

from vtkernels.recipes._data import statistics_named
from vtkernels.recipes._errors import nearest, refuse

if TYPE_CHECKING:
    from vtkernels.data.datasets import Statistics
    from vtkernels.recipes._task import Given

Normalized = Literal["student", "imagenet", "half", "none"]

# what reading weights fails with, whatever they are
UNREADABLE = (FileNotFoundError, ValueError, TypeError, ImportError, RuntimeError, ConnectionError)


class Renormalized(nn.Module):
    """A model that sees images as it was trained on them, of batches that were normalised otherwise."""

    def __init__(self, model: nn.Module, given: "Statistics", own: "Statistics"):
        super().__init__()
        self.model = model
        mean, std, own_mean, own_std = (torch.tensor(values).view(1, -1, 1, 1) for values in (*given, *own))
        self.register_buffer("factor", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * self.factor + self.shift).to(images.dtype))


def renormalized(model: nn.Module, given: "Statistics", own: "Statistics") -> nn.Module:
    """The model itself, if it knows images as they are given."""
    return model if own == given else Renormalized(model, given, own)


def teacher(source: str | None, architecture: str | None, given: "Given", normalize: Normalized | None = None) -> nn.Module:
    """Ready to answer to the student's images, with as many classes; whatever does not fit is told by its field."""
    if source is None:
        hint = "--task.teacher FOLDER of a run, FILE with --task.teacher-model NAME, or timm:NAME"
        refuse("task.teacher", "be weights", None, hint)
    try:
        model = _loaded(source, architecture, given)
    except UNREADABLE as error:
        if str(error).startswith("recipe:"):
            raise
        refuse("task.teacher", "be weights that can be loaded", repr(source), str(error))
    report = getattr(model, "load_report", None)
    if report is not None and report.missing + report.mismatched:
        refuse("task.teacher", "have all weights of its model", str(report), f"are they of {given.num_classes} classes, and of this architecture?")
    model = model.eval().requires_grad_(False)
    with torch.no_grad():
        try:
            answer = model(torch.zeros(1, 3, given.size, given.size))
        except (ValueError, RuntimeError, AssertionError) as error:
            refuse("data.size", "suit the teacher", given.size, str(error))
    if tuple(answer.shape) != (1, given.num_classes):
        refuse("task.teacher", f"know the {given.num_classes} classes of the data", f"answers of shape {list(answer.shape)}", "take one trained on these data")
    return model if given.statistics is None else _seeing(model, source, given.statistics, normalize)


def outline(source: str | None, architecture: str | None, given: "Given") -> nn.Module | None:
    """The teacher without its weights, for a plan; None where nothing tells its architecture."""
    from vtkernels.models import create_model

    name = architecture or _told_by(source)
    if name is None:
        return None
    try:
        with torch.device("meta"):
            if name.startswith("timm:"):
                return _timm(name.removeprefix("timm:"), num_classes=given.num_classes).eval()
            return create_model(name, num_classes=given.num_classes, img_size=given.size).eval()
    except UNREADABLE:
        return None


def _told_by(source: str | None) -> str | None:
    """The architecture, where the name or the folder of the weights tells it."""
    from vtkernels.models import list_models
    from vtkernels.models._checkpoint import saved_config

    kind, _, name = (source or "").partition(":")
    if kind == "new":
        return name
    if kind == "timm":
        own = name.partition(".")[0]
        return own if own in list_models() else f"timm:{name}"
    saved = saved_config(source)
    return saved and saved["model"]


def _seeing(model: nn.Module, source: str, given: "Statistics", normalize: Normalized | None) -> nn.Module:
    """With images normalised as it knows them."""
    if normalize == "student" or source.startswith("new:"):
        return model
    own = _statistics(model, source) if normalize is None else statistics_named(normalize)
    if own is None:
        hint = "--task.teacher-normalize imagenet, half or none; or student, if it was trained on images normalised as the student's"
        refuse("task.teacher_normalize", f"be told, since {source} does not say how its images were normalised", None, hint)
    return renormalized(model, given, own)


def _statistics(model: nn.Module, source: str) -> "Statistics | None":
    """Those beside the weights of a run, or on timm's card."""
    from vtkernels.data.datasets import Statistics

    if source.startswith("timm:"):
        try:
            from timm.models import get_pretrained_cfg
        # of a torchvision that does not fit torch, timm gets no further
        except (ImportError, RuntimeError):
            return None
        card = get_pretrained_cfg(source.removeprefix("timm:"), allow_unregistered=True)
        return card and Statistics(tuple(card.mean), tuple(card.std))
    known = getattr(model, "statistics", None)
    return known and Statistics(*known)


def _loaded(source: str, architecture: str | None, given: "Given") -> nn.Module:
    from vtkernels.models import create_model, list_models

    kind, _, name = source.partition(":")
    if kind == "new":
        return create_model(name, num_classes=given.num_classes, img_size=given.size)
    if architecture is None and kind == "timm":
        architecture = name.partition(".")[0]
        if architecture not in list_models():
            return _timm(name, pretrained=True)
    if architecture is not None and architecture.startswith("timm:"):
        return _timm(architecture.removeprefix("timm:"), num_classes=given.num_classes, checkpoint_path=str(_file(source)))
    if architecture is None:
        from vtkernels.models._checkpoint import saved_config

        if saved_config(source) is None:
            _unknown(source)
        return create_model(checkpoint=source)
    if architecture not in list_models():
        refuse("task.teacher_model", "be one of `vtkernels list models`", repr(architecture), nearest(architecture, list_models()))
    return create_model(architecture, num_classes=given.num_classes, img_size=given.size, checkpoint=source)


def _unknown(source: str) -> NoReturn:
    if not source.startswith("hf-hub:"):
        _file(source, folder=True)
    refuse("task.teacher_model", f"name the model whose weights {source} are", None, "--task.teacher-model NAME, or timm:NAME for one of timm's")


def _file(source: str, folder: bool = False) -> Path:
    path = Path(source).expanduser()
    if not (path.exists() if folder else path.is_file()):
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _timm(name: str, **options: object) -> nn.Module:
    """An architecture that only timm has."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"{name} is a model of timm's, which cannot be imported ({error}); pip install timm") from error
    return timm.create_model(name, **options)
