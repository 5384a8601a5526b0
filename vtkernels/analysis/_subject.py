"""Which model is looked at, on which images: what the command line can say, made a model and a loader."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vtkernels._core.check import fail
from vtkernels.analysis._model import check_weights
from vtkernels.data import create_dataset, create_loader
from vtkernels.data.datasets import ImageDataset, Subset
from vtkernels.data.loader import Loader
from vtkernels.data.transforms import CenterCrop, Compose, Resize
from vtkernels.models import Model, create_model


@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """Options that all analyses of a model have; theirs inherit from it.

    Attributes:
        model: a name of `vtkernels.list_models()`, or the folder of a training run.
        checkpoint: weights for a model given by name; without any it keeps its initial ones.
        fields: other fields of the model's configuration, as name=value.
        data: name of a data set, or a folder <split>/<class>/<image>.
        root: folder of the set's files.
        data_fields: further options of the set, as name=value.
        split: of the data set.
        samples: so many images, drawn once by `seed`; None takes all.
        batch_size: images at a time.
        crop_pct: middle part of each image that is looked at; default 0.875 above 64 pixels, else all of it.
        device: where to compute; default a GPU if there is one.
        seed: of everything drawn.
        out: folder for the results.
    """

    model: str
    checkpoint: str | None = None
    fields: tuple[str, ...] = ()
    data: str = "digits"
    root: str | None = None
    data_fields: tuple[str, ...] = ()
    split: str = "test"
    samples: int | None = None
    batch_size: int = 64
    crop_pct: float | None = None
    device: str | None = None
    seed: int = 0
    out: str = "analysis"

    def load(self) -> "Subject":
        """The model in eval mode, the images, and their loader in order."""
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(self.seed)
        dataset = create_dataset(self.data, self.split, root=self.root, **dict(_field("data_fields", one) for one in self.data_fields))
        model = self.load_model(len(dataset.classes)).to(device)
        if self.samples is not None:
            dataset = _drawn(dataset, self.samples, self.seed)
        if not len(dataset):
            fail("analysis", "data", "hold at least one image", f"none in split {self.split!r} of {self.data!r}", "try another split")
        crop = self.crop_pct or (1.0 if max(model.config.size) <= 64 else 0.875)
        rows, columns = model.config.size
        transform = Compose(Resize((round(rows / crop), round(columns / crop)), cover=True), CenterCrop((rows, columns)))
        loader = create_loader(dataset, self.batch_size, transform=transform, statistics=dataset.statistics, device=device)
        return Subject(model, loader, dataset, device)

    def load_model(self, num_classes: int, model: str | None = None, checkpoint: str | None = None) -> Model:
        """The model named by the options, or another one by name or run folder under the same options."""
        source = model or self.model
        fields = dict(_field("fields", one) for one in self.fields)
        if Path(source).is_dir():
            recorded = _recorded(Path(source))
            built = create_model(recorded.pop("model"), checkpoint=str(Path(source) / "weights"), **{**recorded, **fields})
        elif "/" in source:
            fail("analysis", "model", "be a model's name or the folder of a training run", source, "there is no such folder")
        else:
            fields.setdefault("num_classes", num_classes)
            built = create_model(source, checkpoint=checkpoint if model else self.checkpoint, **fields)
        if not isinstance(built, Model):
            fail("analysis", "model", "take images", f"{source}, which takes words", "vtkernels list has the others")
        if built.num_classes != num_classes:
            hint = "--data names the set it was trained on" if Path(source).is_dir() else "leave num_classes away"
            fail("analysis", "model", f"have as many outputs as the data has classes ({num_classes})", built.num_classes, hint)
        check_weights(built, "analysis")
        return built.eval()


class Subject(NamedTuple):
    """What an analysis looks at."""

    model: Model
    loader: Loader
    dataset: ImageDataset
    device: torch.device


def _drawn(dataset: ImageDataset, samples: int, seed: int) -> Subset:
    if samples < 1:
        fail("analysis", "samples", "be at least 1", samples, "None takes all")
    order = np.random.RandomState(seed).permutation(len(dataset))
    return Subset(dataset, np.sort(order[:samples]))


def _field(option: str, text: str) -> tuple[str, Any]:
    """A name and a value, which is read as JSON where it is some."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        fail("analysis", option, "be of the form name=value", repr(text), "such as patch_size=4")
    try:
        found = json.loads(value)
    except ValueError:
        found = value
    return name, tuple(found) if isinstance(found, list) else found


def _recorded(folder: Path) -> dict[str, Any]:
    """What a run's folder tells of its model: its name under "model", and its configuration under "config"."""
    path = folder / "weights" / "config.json"
    if not path.is_file():
        fail("analysis", "model", "be a model's name or the folder of a training run", f"{str(folder)!r}, which has no {path.relative_to(folder)}")
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        fail("analysis", str(path), 'hold a model\'s name under "model"', json.dumps(content)[:80])
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in content.get("config", {}).items()}
    return {"model": content["model"], **fields}


__all__ = ["Subject", "SubjectOptions"]
