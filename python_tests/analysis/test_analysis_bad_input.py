"""Every analysis on data and models that there is little or nothing to see in: a result, or an error that says what is wrong."""

import json

import pytest
import torch
from PIL import Image

import vtkernels as vt
from vtkernels.analysis import attention, features, sparsity
from vtkernels.analysis.landscape import landscape
from vtkernels.analysis.ntk import ntk
from vtkernels.analysis.sharpness import sharpness
from vtkernels.cli import main

SIZE = 32
ANALYSES = {
    "sharpness": lambda model, loader: sharpness(model, loader, lanczos_steps=2, power_steps=2, trace_samples=0, draws=1),
    "landscape": lambda model, loader: landscape(model, loader, points=3, surface=False),
    "ntk": ntk,
    "active neurons": sparsity.active_share,
    "pruning": lambda model, loader: sparsity.curve(model, loader, [0.0, 0.5]),
    "attention": attention.see,
    "features": lambda model, loader: features.compare({"model": model}, loader),
}


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return vt.create_model("vit_nano_patch4_32", num_classes=3, depth=1)


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("loader", [[], [(torch.empty(0, 3, SIZE, SIZE), torch.empty(0, dtype=torch.int64))]], ids=["no batch", "empty batch"])
def test_no_image(name, loader):
    with pytest.raises(ValueError, match="loader must give at least one (image|sample), got none"):
        ANALYSES[name](vit(), loader)


@pytest.mark.parametrize("name", ANALYSES)
def test_weights_of_nan(name):
    model = vit()
    model.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite weights, got NaN or infinity in head.weight"):
        ANALYSES[name](model, [(torch.randn(6, 3, SIZE, SIZE), torch.arange(6) % 3)])


def test_running_statistics_of_nan():
    model = vt.create_model("resnet_nano", num_classes=3)
    next(value for name, value in model.named_buffers() if name.endswith("running_var"))[0] = torch.nan
    with pytest.raises(ValueError, match="finite weights, got NaN or infinity in .*running_var"):
        sparsity.active_share(model, [(torch.randn(2, 3, SIZE, SIZE), torch.arange(2))])


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("count", [1, 6], ids=["one image", "one class"])
def test_one_image_and_one_class(name, count):
    torch.manual_seed(1)
    loader = [(torch.randn(count, 3, SIZE, SIZE), torch.ones(count, dtype=torch.int64))]
    if name == "features":
        with pytest.raises(ValueError, match="hold images of two classes or more, got class 1 alone"):
            ANALYSES[name](vit(), loader)
    else:
        assert ANALYSES[name](vit(), loader)


@pytest.mark.parametrize("name", ANALYSES)
def test_half_precision_model_takes_images_as_they_are(name):
    torch.manual_seed(1)
    loader = [(torch.randn(9, 3, SIZE, SIZE), torch.arange(9) % 3)]
    assert ANALYSES[name](vit().bfloat16(), loader)


@pytest.fixture
def folder(tmp_path):
    """Images of one class, in all splits."""
    for split in ("train", "test", "val"):
        (tmp_path / "images" / split / "only").mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (SIZE, SIZE), (40 * index, 90, 10)).save(tmp_path / "images" / split / "only" / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "told"),
    [("sharpness", "two classes apart"), ("landscape", "two classes apart"), ("features", "two classes or more"), ("ntk", None), ("attention", None)],
)
def test_a_data_set_of_one_class_from_the_command_line(name, told, folder, capsys):
    pytest.importorskip("tyro")
    out = folder / "out"
    code = main(["analyze", name, "vit_nano_patch4_32", "--data", str(folder / "images"), "--samples", "2", "--device", "cpu", "--out", str(out)])
    if told:
        assert code == 2 and told in capsys.readouterr().err and not out.exists()
    else:
        assert code == 0 and json.loads((out / f"{name}.json").read_text())["complete"]
