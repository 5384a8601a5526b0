"""Weights from files: found in their wrappings, resized, reported by name, and never run."""

import argparse
import os
import pickle

import pytest
import torch
from models.zoo import images, nano
from safetensors.torch import save_file

from vtkernels.models import create_model, load_checkpoint

NAME = "vit_nano_patch4_32"


@pytest.fixture
def state():
    return nano(NAME).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model": {name: value + 1 for name, value in state.items()}, "state_dict_ema": state},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {"model": state, "random": torch.zeros(3)},
    ],
    ids=["bare", "model", "module", "averaged", "compiled", "beside a tensor"],
)
def test_wrapped_weights_are_found(wrap, state, tmp_path):
    torch.save(wrap(state), tmp_path / "weights.pth")
    model = create_model(NAME, num_classes=10, checkpoint=tmp_path / "weights.pth")
    assert model.load_report.complete
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_safetensors_and_folders(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert load_checkpoint(nano(NAME), source).complete


def test_another_number_of_classes_keeps_the_new_head(state, tmp_path, caplog):
    torch.save(state, tmp_path / "weights.pth")
    model = create_model(NAME, num_classes=7, checkpoint=tmp_path / "weights.pth")
    assert model.load_report.mismatched == ["head.weight: [7, 64], [10, 64]", "head.bias: [7], [10]"]
    assert "head.weight" in caplog.text
    assert torch.equal(model.state_dict()["norm.weight"], state["norm.weight"])


def test_positions_follow_the_image(state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    model = create_model(NAME, num_classes=10, img_size=(32, 64), checkpoint=tmp_path / "weights.pth")
    assert model.load_report.resized == ["pos_embed"] and model.load_report.complete
    assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert model(images(2, (32, 64))).isfinite().all()


def test_strangers_are_reported_by_name(state, tmp_path):
    state["surplus.weight"] = torch.zeros(1)
    del state["norm.bias"]
    torch.save(state, tmp_path / "weights.pth")
    report = load_checkpoint(nano(NAME), tmp_path / "weights.pth")
    assert report.unexpected == ["surplus.weight"] and report.missing == ["norm.bias"]
    assert "surplus.weight" in str(report) and "norm.bias" in str(report)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_runs_code_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Malicious(tmp_path / "ran")}, tmp_path / "weights.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    for file in ("weights.pth", "plain.pkl"):
        with pytest.raises(ValueError, match=r"would run code of its own \((it asks for \w+\.mkdir|it is no plain dict of tensors)\)"):
            load_checkpoint(nano(NAME), tmp_path / file)
    assert not (tmp_path / "ran").exists()


def test_wrong_files_say_what_is_expected(state, tmp_path):
    model = nano(NAME)
    with pytest.raises(FileNotFoundError, match=r"no such file; expected a \.pth, \.safetensors or \.npz file"):
        load_checkpoint(model, tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"expected one of model\.safetensors"):
        load_checkpoint(model, tmp_path)
    for suffix in ("pth", "safetensors", "npz"):
        (tmp_path / f"noise.{suffix}").write_bytes(b"no weights at all")
        with pytest.raises(ValueError, match="damaged or of another format|would run code"):
            load_checkpoint(model, tmp_path / f"noise.{suffix}")
    torch.save({"lr": 0.1}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="expected tensors by name.*got lr"):
        load_checkpoint(model, tmp_path / "empty.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({f"layer{index}": torch.zeros(3) for index in range(40)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="expected the weights of a VisionTransformer, but only 0 of .* try another model name"):
        load_checkpoint(model, tmp_path / "other.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_impossible_names_on_the_hub_are_refused():
    pytest.importorskip("huggingface_hub")
    for source in ("hf-hub:", "hf-hub:a b/c/d", "timm:a/b"):
        with pytest.raises(ValueError, match="the hub refused it .*; check the name"):
            load_checkpoint(nano(NAME), source)
