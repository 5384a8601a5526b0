"""Short runs for tests of what is told of a run."""

import torch
from torch.utils.data import Dataset

import vtkernels as vt
from vtkernels.data import create_loader
from vtkernels.optim import create_optimizer
from vtkernels.train import ClassificationTask, Settings, Trainer


class Bars(Dataset):
    """Images whose class is where a bright bar stands."""

    def __init__(self, count: int = 24, size: tuple[int, int] = (16, 12), classes: tuple[str, ...] = ("left", "right", "<b>middle</b>"), channels: int = 1):
        self.count, self.size, self.classes, self.channels = count, size, classes, channels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = index % len(self.classes)
        image = 0.3 * torch.rand(self.channels, *self.size, generator=torch.Generator().manual_seed(index))
        image[:, :, 4 * label : 4 * label + 2] += 1
        return image, label


def small_net(classes: int = 3, channels: int = 1) -> torch.nn.Module:
    torch.manual_seed(0)
    return vt.create_model("resnet8_nano", num_classes=classes, in_channels=channels)


def trainer_of(folder, observers, *, model=None, data=None, valid=True, epochs=2, config=None, **settings) -> Trainer:
    data = data or Bars()
    task = ClassificationTask(model or small_net())
    optimizer = create_optimizer("sgd", task.parameters(), lr=0.05)
    valid_loader = create_loader(data, 8) if valid else None
    train_loader = create_loader(data, 8, train=True)
    settings = Settings(epochs=epochs, log_every=1, **settings)
    return Trainer(task, optimizer, None, train_loader, valid_loader, settings, folder=folder, observers=observers, config=config, device=torch.device("cpu"))
