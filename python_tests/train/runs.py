"""Runs of a second or less: a transformer of a few thousand weights on noise."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import vtkernels as vt
from vtkernels.train import ClassificationTask, DrlocTask, Observer, Settings, StepRecord, Trainer

CLASSES = 5


class Noise(Dataset):
    def __init__(self, count: int, size: int = 8):
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randn(count, 3, size, size, generator=generator)
        self.targets = torch.randint(0, CLASSES, (count,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


class Losses(Observer):
    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)

    @property
    def curve(self) -> list[float]:
        return [record.loss for record in self.records]


def tiny_model(**changes: Any) -> nn.Module:
    torch.manual_seed(1)
    return vt.create_model("vit_nano_patch4_32", **{"num_classes": CLASSES, "img_size": 8, "width": 16, "depth": 2, "heads": 2, **changes})


def tiny_task(**changes: Any) -> ClassificationTask:
    return ClassificationTask(tiny_model(**changes))


def rich_task() -> DrlocTask:
    """All that draws random numbers: dropout, stochastic depth, pairs."""
    return DrlocTask(tiny_task(dropout=0.1, drop_path=0.2), vt.losses.DrlocLoss(16, layout="bchw", hidden=16, num_pairs=8))


def sam(module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return vt.optim.SAM(module.parameters(), torch.optim.AdamW, model=module, **{"rho": 0.1, "lr": 1e-2, **options})


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def loader(count: int = 24, batch: int = 4, **options: Any) -> vt.data.Loader:
    return vt.data.create_loader(Noise(count), batch, **{"train": True, **options})


def trainer(
    folder: Path | None = None, task: nn.Module | None = None, optimizer: Any = sgd, *, train: Any = None, valid: Any = None, **options: Any
) -> Trainer:
    """`options`: of the settings, but for observers, schedule and config."""
    own = {name: options.pop(name) for name in ("observers", "config") if name in options}
    schedule = options.pop("schedule", None)
    settings = Settings(**{"epochs": 2, "log_every": 1, **options})
    valid = loader(10, train=False) if valid is None else valid
    return Trainer(task or tiny_task(), optimizer, schedule, train or loader(), valid, settings, folder=folder, **own)


def rich_trainer(folder: Path | None, observers: list[Observer], **options: Any) -> Trainer:
    """SAM, an average of the weights, accumulation, clipping, mixing and a schedule: 2 epochs of 4 updates."""
    mixed = loader(28, 4, mix=vt.data.Mixup(cutmix_alpha=1.0, num_classes=CLASSES))
    schedule = vt.optim.schedules.Cosine(lr=1e-2, length=8, warmup=2)
    usual = {"accumulate": 2, "clip_norm": 1.0, "ema_decay": 0.9, "save_every_updates": 1, "observers": observers}
    return trainer(folder, rich_task(), lambda module: sam(module, same_rng=True), train=mixed, schedule=schedule, **(usual | options))


def tensors(value: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors of nested dicts and lists, by their path."""
    if isinstance(value, Tensor):
        return {path: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {name: tensor for key, part in parts for name, tensor in tensors(part, f"{path}/{key}").items()}


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    for (name, one), (_, other) in zip(found.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
