"""Names, counts and configurations of all variants; nothing here allocates weights."""

import subprocess
import sys
import time

import pytest
import torch
from models.zoo import ALL, NANO

import vtkernels as vt
from vtkernels.models import Model
from vtkernels.models._registry import _find


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_every_variant_has_the_published_number_of_parameters(name):
    info = vt.model_info(name)
    # torch loads hundreds of modules for the first random numbers on the meta device
    torch.empty(1, device="meta").normal_()
    # of the processor: tests run side by side
    start = time.process_time()
    with torch.device("meta"):
        model = vt.create_model(name, num_classes=info.classes)
    assert time.process_time() - start < 2
    assert parameters(model) == info.parameters
    assert info.source


def test_every_family_has_a_nano_variant():
    families = {_find(name)[0] for name in ALL if issubclass(_find(name)[0], Model)}
    assert families == {_find(name)[0] for name in NANO}


def test_lists_by_pattern():
    assert vt.list_models() == sorted(ALL)
    assert vt.list_models("vit_*") == [name for name in sorted(ALL) if name.startswith("vit_")]
    assert vt.list_models("nothing*") == []


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no model is called 'vit_smal_patch16_224'.*vit_small_patch16_224"):
        vt.create_model("vit_smal_patch16_224")
    with pytest.raises(ValueError, match="no model is called"):
        vt.model_info("resnext")
    with pytest.raises(TypeError, match=r"no field 'patchsize'; the nearest names are patch_size"):
        vt.create_model("vit_nano_patch4_32", patchsize=2)


@pytest.mark.parametrize("name", NANO)
def test_impossible_numbers_are_refused(name):
    for field, value in (("num_classes", -1), ("in_channels", 0), ("img_size", (32, 0))):
        with pytest.raises(ValueError, match=f"{field} must be .*got"):
            vt.create_model(name, **{field: value})


def test_models_of_words_are_plain_modules():
    model = vt.create_model("transformer_nano")
    assert isinstance(model, torch.nn.Module) and not isinstance(model, Model)
    assert vt.create_model("bert_nano", depth=1).config.depth == 1
    with pytest.raises(TypeError, match="bert_nano takes words, not images, and has no feature maps; leave features_only out"):
        vt.create_model("bert_nano", features_only=True)
    for field, value in (("num_classes", 10), ("img_size", 32), ("drop_path", 0.1)):
        with pytest.raises(TypeError, match=f"bert_nano has no field '{field}'"):
            vt.create_model("bert_nano", **{field: value})


def test_importing_the_package_loads_no_model():
    program = "import sys, vtkernels; print([name for name in sys.modules if name.startswith(('vtkernels.models', 'vtkernels.layers'))])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
