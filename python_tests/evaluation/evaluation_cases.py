"""What the tests of evaluation share: a small model and some digits for it, weights in a file, and what a command wrote."""

import json

import torch
from torch import nn

import vtkernels as vt
from vtkernels import evaluation as ev
from vtkernels.data import create_dataset, create_loader
from vtkernels.data.datasets import Subset

NAME = "vit_nano_patch4_32"


class Linear(nn.Module):
    """Logits of 8 x 8 pixels, with what evaluation mode must switch."""

    def __init__(self, classes=10):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(3 * 64), nn.Dropout(0.5), nn.Linear(3 * 64, classes)

    def forward(self, images):
        return self.head(self.drop(self.norm(images.flatten(1))))


def digits(count=37):
    return Subset(create_dataset("digits", "test", size=8), range(count))


def loader_of(dataset, batch_size=8, **options):
    return create_loader(dataset, batch_size, statistics=dataset.statistics, **options)


def whole(model, dataset, **options):
    return ev.predict(model, loader_of(dataset, rank=0, world=1), gather=False, **options)


def weights(folder, num_classes=10):
    """A folder with random weights of the model `NAME`."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(vt.create_model(NAME, num_classes=num_classes).state_dict(), folder / "model.safetensors")
    return str(folder)


def read(options):
    """evaluation.json."""
    return json.loads((options.out / "evaluation.json").read_text())
