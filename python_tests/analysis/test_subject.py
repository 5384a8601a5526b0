"""The model and the images that options name."""

import json

import pytest
import torch

import vtkernels as vt
from vtkernels.analysis._subject import SubjectOptions


def test_a_runs_folder_names_its_model(tmp_path):
    model = vt.create_model("vit_nano_patch4_32", num_classes=10, depth=1)
    (tmp_path / "weights").mkdir()
    torch.save(model.state_dict(), tmp_path / "weights" / "model.pth")
    record = {"vtkernels": "0", "model": "vit_nano_patch4_32", "config": {"num_classes": 10, "depth": 1, "img_size": [32, 32]}}
    (tmp_path / "weights" / "config.json").write_text(json.dumps(record))
    subject = SubjectOptions(model=str(tmp_path), samples=9, batch_size=4, device="cpu").load()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in subject.model.state_dict().items())
    assert not subject.model.training and [len(targets) for _, targets in subject.loader] == [4, 4, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "."}, "name or the folder of a training run"),
        ({"model": "bert_nano"}, "bert_nano"),
        ({"fields": ("depth",)}, "fields must be of the form name=value"),
        ({"fields": ("num_classes=3",)}, "as many outputs as the data has classes"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_bad_options_are_told(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SubjectOptions(**{"model": "vit_nano_patch4_32", "device": "cpu", **change}).load()
