"""Models by name. Family modules register their variants when they are imported, which the first question does."""

import dataclasses
import difflib
import fnmatch
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vtkernels.layers import take_over_linear_layers
from vtkernels.models._base import Config, FeatureMaps, Model
from vtkernels.models._checkpoint import load_checkpoint, revived, saved_config


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is known of a variant.

    Attributes:
        parameters: all of them, frozen ones included, with `classes` classes at the default image size.
        source: where the architecture was published.
        gmacs: multiply-accumulates of one image, in 1e9, as published or as timm counts them.
        top1: published ImageNet-1k accuracy in percent.
    """

    parameters: int
    source: str
    gmacs: float | None = None
    top1: float | None = None
    classes: int = 1000


@dataclass(frozen=True)
class Variant:
    config: Any
    info: Info


_MODELS: dict[str, tuple[type[nn.Module], Variant]] = {}


def register(model: type[nn.Module], variants: dict[str, Variant]) -> None:
    """Make the variants of a family known; called at the end of its module."""
    for name, variant in variants.items():
        if name in _MODELS and _MODELS[name][0] is not model:
            raise RuntimeError(f"two families register a model {name!r}")
        _MODELS[name] = (model, variant)


def _all_models() -> dict[str, tuple[type[nn.Module], Variant]]:
    package = importlib.import_module("vtkernels.models")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"vtkernels.models.{module.name}")
    return _MODELS


def _find(name: str) -> tuple[type[nn.Module], Variant]:
    models = _all_models()
    if name not in models and Path(name).is_dir():
        raise ValueError(f"create_model: the first argument must be a model's name, got the folder {name!r}; what a run has learnt goes to `checkpoint`")
    if name not in models:
        raise ValueError(f"create_model: no model is called {name!r}; {_nearest(name, models)}; vt.list_models() gives all")
    return models[name]


def _nearest(name: str, names: Any) -> str:
    begun = [known for known in sorted(names) if name and known.startswith(name)]
    near = begun[:3] or difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    return f"the nearest names are {', '.join(near)}" if near else f"it knows {', '.join(sorted(names)[:8])} and others"


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, sorted; `pattern` as for file names: "swin_*"."""
    return sorted(fnmatch.filter(_all_models(), pattern))


def model_info(name: str) -> Info:
    """Parameters, multiply-accumulates, source and published accuracy of a model."""
    return _find(name)[1].info


def family_of(name: str) -> type[nn.Module]:
    """The class of the model."""
    return _find(name)[0]


def siblings(name: str) -> list[str]:
    """The variants of the model's family, itself included, in the order of its table."""
    family = _find(name)[0]
    return [other for other, (owner, _) in _MODELS.items() if owner is family]


def model_config(name: str) -> Any:
    """The configuration that `create_model(name)` starts from."""
    return _find(name)[1].config


def create_model(
    name: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_path: float | None = None,
    checkpoint: str | None = None,
    features_only: bool = False,
    **overrides: Any,
) -> Model | FeatureMaps | nn.Module:
    """A model by name. Those of images are `Model`s; those of words are plain modules, to which some arguments mean nothing.

    Args:
        name: one of `vt.list_models()`; None for the one that a trainer saved in the folder `checkpoint`.
        num_classes: outputs of the head; 0 for pooled features. None means 1000, or as many as a trainer's `checkpoint` has.
        img_size: edge or (rows, columns) of the images, if another than the variant's.
        drop_path: rate of stochastic depth at the last block.
        checkpoint: weights to load: a .pth, .safetensors or .npz file of ours, of timm or of the official code, a folder
            with `model.safetensors`, a run of the trainer, "hf-hub:owner/name" or "timm:architecture.tag". What did not fit is listed in `model.load_report`.
        features_only: a `FeatureMaps`, which gives the maps of growing depth instead of logits.
        **overrides: any other field of the variant's configuration.
    """
    saved = saved_config(checkpoint)
    if name is None:
        if saved is None:
            raise TypeError(
                f"create_model: name must be given unless checkpoint is the folder of a run, got checkpoint={checkpoint!r}; vt.list_models() gives all"
            )
        name = saved["model"]
    family, variant = _find(name)
    config = variant.config
    fields = {field.name for field in dataclasses.fields(config)}
    if saved is not None and saved["model"] == name:
        config = _as_saved(config, saved)
    elif num_classes is None and "num_classes" in fields:
        num_classes = 1000
    asked = {"img_size": img_size, "drop_path": drop_path, **overrides}
    changes = {field: value for field, value in asked.items() if value is not None or field in overrides}
    if num_classes is not None and ("num_classes" in fields or num_classes != 1000):
        changes["num_classes"] = num_classes
    if features_only and not issubclass(family, Model):
        raise TypeError(f"create_model: {name} takes words, not images, and has no feature maps; leave features_only out")
    for field in changes:
        if field not in fields:
            raise TypeError(f"create_model: {name} has no field {field!r}; {_nearest(field, fields)}; its fields are {', '.join(sorted(fields))}")
    model = family(dataclasses.replace(config, **changes))
    model.variant = name
    take_over_linear_layers(model)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    if saved is not None and "statistics" in saved:
        model.statistics = tuple(map(tuple, saved["statistics"]))
    return FeatureMaps(model) if features_only else model


def _as_saved(config: Any, saved: dict[str, Any]) -> Any:
    """The variant's configuration with the values it had when it was saved."""
    values = saved["config"]
    fields = {field.name for field in dataclasses.fields(config)}
    if not values.keys() <= fields:
        odd = ", ".join(sorted(values.keys() - fields))
        raise ValueError(
            f"create_model: {saved['model']} has no fields {odd}, which its saved config.json has; it was written by vtkernels {saved['vtkernels']}"
        )
    return dataclasses.replace(config, **{field: revived(value, getattr(config, field)) for field, value in values.items()})


__all__ = ["Config", "Info", "Variant", "create_model", "list_models", "model_config", "model_info", "register", "siblings"]
