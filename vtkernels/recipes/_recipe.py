"""A recipe: everything that decides the values of a training, and nothing that decides when they are used."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vtkernels.recipes._augment import Augment, Erase, Mixup, Scene
from vtkernels.recipes._data import Data, Scalar
from vtkernels.recipes._errors import nearest, refuse
from vtkernels.recipes._json import from_json, to_json
from vtkernels.recipes._optim import AdamW, Optimizers, Sharpness
from vtkernels.recipes._schedule import Cosine, Schedules
from vtkernels.recipes._task import Classification, Task
from vtkernels.recipes._tuning import Tuning
from vtkernels.recipes._unlabelled import Unlabelled
from vtkernels.train import Settings

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained.

    Attributes:
        name: one of `vtkernels list models`.
        num_classes: None means as many as the data have.
        drop_path: stochastic depth at the last block; None means the model's own.
        checkpoint: weights to begin with: a file, a run's folder, hf-hub:... or timm:...
        head_bias: of the classifier at the start: of sigmoids, the logarithm of how rare a class is; None means the model's own.
        trained: which part of it; none means all.
        options: any other field of the model's configuration.
    """

    name: str = "vit_tiny_patch16_224"
    num_classes: int | None = None
    drop_path: float | None = None
    checkpoint: str | None = None
    head_bias: float | None = None
    trained: Tuning | None = None
    options: dict[str, Scalar] = field(default_factory=dict)

    def check(self) -> None:
        from vtkernels.models import Model as ImageModel
        from vtkernels.models import list_models
        from vtkernels.models._registry import family_of

        if self.name not in list_models():
            refuse("model.name", "be one of `vtkernels list models`", repr(self.name), nearest(self.name, list_models()))
        if not issubclass(family_of(self.name), ImageModel):
            refuse("model.name", "be a model of images", repr(self.name), "bert_grey_nano_patch4_32 makes words of them")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            refuse("model.drop_path", "lie in [0, 1)", self.drop_path)

    def build(self, size: int, num_classes: int) -> "nn.Module":
        from torch import nn

        from vtkernels.models import create_model

        self.check()
        try:
            model = create_model(self.name, num_classes=num_classes, img_size=size, drop_path=self.drop_path, checkpoint=self.checkpoint, **self.options)
        except TypeError as error:
            refuse("model.options", f"be fields of {self.name}", self.options, str(error))
        except ValueError as error:
            field = "data.size" if "size" in str(error) else "model"
            refuse(field, f"suit {self.name}", size if field == "data.size" else self, str(error))
        except FileNotFoundError as error:
            refuse("model.checkpoint", "be weights that exist", repr(self.checkpoint), str(error))
        if self.head_bias is not None:
            for name in model.classifiers:
                nn.init.constant_(model.get_submodule(name).bias, self.head_bias)
        if self.trained is not None:
            self.trained.build(model)
        return model


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the values of a training.

    Attributes:
        name: of the run.
        model: what is trained.
        data: on which images.
        unlabelled: on which images without labels beside them.
        augment: what is done to each image.
        mix: what is done to a batch of them.
        erase: what is cut out of them.
        task: what is minimised.
        optim: by which steps.
        sam: whether the steps look for flat minima.
        schedule: how fast, and when.
        train: for how long, and in which precision.
    """

    name: str = "recipe"
    model: Model = Model()
    data: Data = Data()
    unlabelled: Unlabelled | None = None
    augment: Augment | Scene = Augment()
    mix: Mixup | None = None
    erase: Erase | None = None
    task: Task = Classification()
    optim: Optimizers = AdamW()
    sam: Sharpness | None = None
    schedule: Schedules = Cosine()
    train: Settings = Settings()

    def json(self) -> str:
        return to_json(self)

    @classmethod
    def from_json(cls, text: str, source: str = "recipe") -> Self:
        return from_json(cls, text, source)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """From a file, or from the run whose folder is given."""
        path = Path(path)
        path = path / "recipe.json" if path.is_dir() else path
        try:
            return from_json(cls, path.read_text(), str(path))
        except (OSError, UnicodeDecodeError):
            refuse("--from", "be a recipe.json or a run's folder", str(path), "every run writes one into its folder")

    def resolved(self, world: int = 1) -> Self:
        """With the learning rates that the batch and the number of processes ask for; resolving once more changes nothing."""
        scaling = self.optim.scaling
        if scaling is None:
            return self
        factor = scaling.factor(self.data.batch_size, world)
        schedule = self.schedule.scaled(factor) if scaling.ends else self.schedule
        return replace(self, optim=replace(self.optim, lr=self.optim.lr * factor, scaling=None), schedule=schedule)
